import json
import shutil

import numpy as np
import pytest
import torch

from fpdm.config import EncodeConfig
from fpdm.data.batches import image_batches, to_signed
from fpdm.data.codec import Moments, open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore, LatentWriter, Manifest, check_codec


def test_store_holds_what_the_codec_says(tiny_store, tiny_vae, image_folder):
    store, codec = LatentStore(tiny_store), open_codec(str(tiny_vae))
    _, pixels, labels = next(image_batches(open_images(image_folder), 16, 24))
    for mirrored, images in ((False, pixels), (True, pixels.flip(-1))):
        expected = codec.encode(to_signed(images))
        indices = np.array([5, 23, 0])
        moments, found = store.read(indices, np.full(3, mirrored))
        assert found.tolist() == labels[indices].tolist()
        for ours, theirs in zip(moments, expected, strict=True):
            torch.testing.assert_close(ours, theirs[indices], atol=2e-3, rtol=2e-3)  # float16


def test_manifest(tiny_store, tiny_vae):
    manifest = LatentStore(tiny_store).manifest
    assert manifest.class_names == ["ant", "bee", "cow"]
    assert (manifest.count, manifest.shape, manifest.flips, manifest.parts) == (24, [4, 8, 8], 2, 2)
    moments, _ = LatentStore(tiny_store).read(np.arange(24))
    drawn = (moments.mean.double().var() + moments.std.double().square().mean()).sqrt()
    assert manifest.std == pytest.approx(float(drawn), rel=1e-3)
    assert (manifest.codec, manifest.scale) == (str(tiny_vae), 0.5)


def test_pixels_are_stored_exactly(image_folder, tmp_path):
    images = open_images(image_folder)
    config = EncodeConfig(resolution=8, mirror=False)
    manifest = encode(images, open_codec("pixels"), tmp_path / "store", config, torch.device("cpu"))
    assert (manifest.shape, manifest.parts, manifest.flips) == ([3, 8, 8], 1, 1)
    moments, _ = LatentStore(tmp_path / "store").read(np.arange(24))
    _, pixels, _ = next(image_batches(images, 8, 24))
    assert torch.equal(((moments.mean + 1) * 127.5).round().to(torch.uint8), pixels)
    assert moments.std is None


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 10])
def test_shards_split_anywhere(tmp_path, batch):
    manifest = Manifest("pixels", "pixels", 1.0, 2, "centre", [1, 2, 2], 1, 1, ["a"], shard_records=4)
    writer = LatentWriter(tmp_path, manifest)
    values = torch.arange(10.0)[:, None, None, None].expand(10, 1, 2, 2)
    for first in range(0, 10, batch):
        part = values[first : first + batch]
        writer.write(torch.arange(first, first + len(part)), [Moments(part, None)])
    writer.close()
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == [f"shard-{i:05d}.bin" for i in range(3)]
    moments, labels = LatentStore(tmp_path).read(np.arange(10))
    assert labels.tolist() == list(range(10))
    assert torch.equal(moments.mean, values)


def test_content_hash_does_not_depend_on_batching(image_folder, tiny_vae, tmp_path):
    hashes = set()
    for batch in (24, 5):
        config = EncodeConfig(resolution=8, batch_size=batch)
        manifest = encode(
            open_images(image_folder), open_codec("pixels"), tmp_path / str(batch), config, torch.device("cpu")
        )
        hashes.add(manifest.content)
    assert len(hashes) == 1


def test_unfinished_damaged_and_foreign_stores_are_refused(tiny_store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        LatentStore(tmp_path)
    shutil.copytree(tiny_store, tmp_path / "short")
    shard = tmp_path / "short" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the store is damaged"):
        LatentStore(tmp_path / "short")
    shutil.copytree(tiny_store, tmp_path / "old")
    fields = json.loads((tmp_path / "old" / "manifest.json").read_text())
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({**fields, "format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        LatentStore(tmp_path / "old")


def test_damaged_record_is_named(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "s")
    with (tmp_path / "s" / "shard-00000.bin").open("r+b") as file:
        file.seek(7 * LatentStore(tmp_path / "s").manifest.record.itemsize + 4)
        file.write(b"\xff\xff")
    with pytest.raises(ValueError, match="record 7 is not finite; the store is damaged"):
        LatentStore(tmp_path / "s").read(np.array([3, 7]))


def test_existing_store_is_not_overwritten(tiny_store):
    with pytest.raises(ValueError, match="already holds a latent store"):
        LatentWriter(tiny_store, LatentStore(tiny_store).manifest)


def test_mirror_images_must_be_there(image_folder, tmp_path):
    config = EncodeConfig(resolution=8, mirror=False)
    encode(open_images(image_folder), open_codec("pixels"), tmp_path / "s", config, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"set data\.mirror: false"):
        LatentStore(tmp_path / "s").read(np.array([0]), np.array([True]))


def test_latents_that_are_not_finite_are_refused(tmp_path):
    manifest = Manifest("pixels", "pixels", 1.0, 2, "centre", [1, 2, 2], 1, 1, ["a"])
    with pytest.raises(ValueError, match="not finite in float16"):
        LatentWriter(tmp_path, manifest).write(torch.zeros(1), [Moments(torch.full((1, 1, 2, 2), 1e6), None)])


def test_codec_must_be_the_stores(tiny_store, tiny_vae, tmp_path):
    manifest = LatentStore(tiny_store).manifest
    check_codec(manifest, open_codec(str(tiny_vae)), tiny_store)
    with pytest.raises(ValueError, match="their channels is 4, the VAE's is 3"):
        check_codec(manifest, open_codec("pixels"), tiny_store)
    other = open_codec(str(tiny_vae))
    other.fingerprint = "0"
    with pytest.raises(ValueError, match="their weights is"):
        check_codec(manifest, other, tiny_store)


def test_skipped_images_are_counted(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "set")
    (tmp_path / "set" / "ant" / "1.png").write_bytes(b"no image")
    config = EncodeConfig(resolution=8, skip_broken=True)
    manifest = encode(open_images(tmp_path / "set"), open_codec("pixels"), tmp_path / "s", config, torch.device("cpu"))
    assert (manifest.count, manifest.skipped) == (23, 1)
