import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fpdm.config import EncodeConfig
from fpdm.data.batches import image_batches, to_signed
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore, Manifest, check_std, check_store_codec

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]


def test_store_holds_what_the_codec_says(tiny_store, tiny_vae, image_folder):
    store, codec = LatentStore(tiny_store), open_codec(str(tiny_vae))
    _, pixels, labels = next(image_batches(open_images(image_folder), 16, 24))
    for mirrored, images in ((False, pixels), (True, pixels.flip(-1))):
        expected = codec.encode(to_signed(images))
        indices = np.array([5, 23, 0])
        batch = store.read(indices, np.full(3, mirrored))
        assert batch.labels.tolist() == labels[indices].tolist()
        for ours, theirs in zip(batch.moments(), expected, strict=True):
            torch.testing.assert_close(ours, theirs[indices], atol=2e-3, rtol=2e-3)  # float16


def test_manifest(tiny_store, tiny_vae):
    manifest = LatentStore(tiny_store).manifest
    assert manifest.class_names == ["ant", "bee", "cow"]
    assert (manifest.count, manifest.shape, manifest.flips, manifest.parts) == (24, [4, 8, 8], 2, 2)
    moments = LatentStore(tiny_store).read(np.arange(24)).moments()
    drawn = (moments.mean.double().var() + moments.std.double().square().mean()).sqrt()
    assert manifest.std == pytest.approx(float(drawn), rel=1e-3)
    assert (manifest.codec, manifest.scale) == (str(tiny_vae), 0.5)


def test_pixels_are_stored_exactly(image_folder, tmp_path):
    images = open_images(image_folder)
    config = EncodeConfig(resolution=8, mirror=False)
    manifest = encode(images, open_codec("pixels"), tmp_path / "store", config, torch.device("cpu"))
    assert (manifest.shape, manifest.parts, manifest.flips) == ([3, 8, 8], 1, 1)
    moments = LatentStore(tmp_path / "store").read(np.arange(24)).moments()
    _, pixels, _ = next(image_batches(images, 8, 24))
    assert torch.equal(((moments.mean + 1) * 127.5).round().to(torch.uint8), pixels)
    assert moments.std is None


@pytest.mark.parametrize(("kind", "parts"), [("tiny_store", 2), ("pixel_store", 1)])
def test_batches_are_contiguous(kind, parts, request):
    """Strides survive pinning, and a GPU cannot fetch a strided tensor by itself: the host would wait for it."""
    indices = np.array([7, 3, 11, 3])
    batch = LatentStore(request.getfixturevalue(kind)).read(indices, np.array([True, False, True, False]))
    assert batch.records.dtype == torch.float16 and batch.records.shape[:2] == (4, parts)
    assert batch.records.is_contiguous() and batch.labels.is_contiguous()
    assert batch.attributes is batch.to(torch.device("cpu")).attributes is None
    assert all(torch.equal(a, b) for a, b in zip(batch[:2], batch.to(torch.device("cpu"))[:2], strict=True))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_record_that_is_not_finite_is_named(tiny_store, tmp_path, bad):
    shutil.copytree(tiny_store, tmp_path / "s")
    record = LatentStore(tiny_store).manifest.record
    shard = np.memmap(tmp_path / "s" / "shard-00000.bin", record, "r+")
    shard["moments"][5, 0, 1, 3, 7, 7] = bad
    shard.flush()
    store = LatentStore(tmp_path / "s")
    store.read(np.array([4, 6]))
    with pytest.raises(ValueError, match="record 5 is not finite; the store is damaged"):
        store.read(np.array([4, 5, 6]))
    largest = np.memmap(tmp_path / "s" / "shard-00000.bin", record, "r+")
    largest["moments"][5, 0, 1, 3, 7, 7] = -np.finfo(np.float16).max
    largest.flush()
    assert LatentStore(tmp_path / "s").read(np.array([5])).records.abs().max() == 65504


def test_tf32_is_as_asked_for_and_recorded(image_folder, tmp_path, monkeypatch):
    asked, script = [], str(ROOT / "scripts" / "encode_latents.py")
    monkeypatch.setattr("fpdm.commands.encode_latents.allow_tf32", asked.append)
    for words in ([], ["--tf32"]):
        store = tmp_path / str(len(words))
        encode_all = ["--images", str(image_folder), "--vae", "pixels", "--resolution", "8", "--out", str(store)]
        monkeypatch.setattr(sys, "argv", [script, *encode_all, *words])
        runpy.run_path(script, run_name="__main__")
        assert LatentStore(store).manifest.tf32 is bool(words)
    assert asked == [False, True]


def test_unfinished_damaged_and_foreign_stores_are_refused(tiny_store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json; make a store"):
        LatentStore(tmp_path)
    shutil.copytree(tiny_store, tmp_path / "short")
    shard = tmp_path / "short" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the store is damaged"):
        LatentStore(tmp_path / "short")
    shutil.copytree(tiny_store, tmp_path / "old")
    fields = json.loads((tmp_path / "old" / "manifest.json").read_text())
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({**fields, "format": 1}))
    with pytest.raises(ValueError, match="format 1, this version reads 2; encode again"):
        LatentStore(tmp_path / "old")
    (tmp_path / "old" / "manifest.json").write_text('{"format"')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        LatentStore(tmp_path / "old")
    (tmp_path / "old" / "manifest.json").rename(tmp_path / "old" / "encoding.json")
    with pytest.raises(FileNotFoundError, match="run the command that made it again"):
        LatentStore(tmp_path / "old")


def test_damaged_record_is_named(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "s")
    with (tmp_path / "s" / "shard-00000.bin").open("r+b") as file:
        file.seek(7 * LatentStore(tmp_path / "s").manifest.record.itemsize + 8)
        file.write(b"\xff\xff")
    with pytest.raises(ValueError, match="record 7 is not finite; the store is damaged"):
        LatentStore(tmp_path / "s").read(np.array([3, 7]))


def test_mirror_images_must_be_there(image_folder, tmp_path):
    config = EncodeConfig(resolution=8, mirror=False)
    encode(open_images(image_folder), open_codec("pixels"), tmp_path / "s", config, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"set data\.mirror: false"):
        LatentStore(tmp_path / "s").read(np.array([0]), np.array([True]))


def test_codec_must_be_the_stores(tiny_store, tiny_vae, tmp_path):
    manifest = LatentStore(tiny_store).manifest
    check_store_codec(manifest, open_codec(str(tiny_vae)), tiny_store)
    with pytest.raises(ValueError, match="their channels is 4, the VAE's is 3"):
        check_store_codec(manifest, open_codec("pixels"), tiny_store)
    other = open_codec(str(tiny_vae))
    other.fingerprint = "0"
    with pytest.raises(ValueError, match="their weights is"):
        check_store_codec(manifest, other, tiny_store)


def test_imported_latents_take_any_vae_that_fits(tiny_store, tiny_vae):
    codec = open_codec(str(tiny_vae))
    unknown = replace(LatentStore(tiny_store).manifest, codec=None, fingerprint=None)
    check_store_codec(unknown, codec, tiny_store)
    check_store_codec(replace(unknown, scale=None), codec, tiny_store)
    with pytest.raises(ValueError, match=r"scale factor is 0\.3, the VAE's is 0\.5; use the VAE they were made with$"):
        check_store_codec(replace(unknown, scale=0.3), codec, tiny_store)
    with pytest.raises(ValueError, match="mean per channel"):
        check_store_codec(replace(unknown, latents_mean=[0.0] * 4), codec, tiny_store)


@pytest.mark.parametrize(("codec", "std", "warns"), [("vae", 1.0, False), ("vae", 0.1, True), ("pixels", 0.1, False)])
def test_std_far_from_one_is_warned_of(tiny_store, codec, std, warns):
    said = check_std(replace(LatentStore(tiny_store).manifest, codec=codec, std=std))
    assert (said is not None) == warns
    assert not warns or "standard deviation is 0.100, outside 0.7..1.3" in said


LARGE = """
import resource, sys, time
import numpy as np
from fpdm.data.latents import LatentStore
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before, start = resident(), time.perf_counter()
store = LatentStore(sys.argv[1])
opened = time.perf_counter() - start
batch = store.read(np.array([len(store) - 1, 0, len(store) - 2]), np.array([True, False, False]))
moments, labels = batch.moments(), batch.labels
assert labels.tolist() == [7, 0, 0], labels
assert moments.mean[:, 0, 0, 0].tolist() == [3, 0, 0] and moments.std[:, 0, 0, 0].tolist() == [4, 0, 0]
store.read(np.random.default_rng(0).integers(0, len(store), 256))
print(opened, resident() - before)
"""


def test_store_of_imagenets_size_is_not_loaded(tmp_path):
    """1,281,167 records of 32 KiB, most of them holes of the file."""
    shards = [4096] * 312 + [3215]
    manifest = Manifest(
        "vae", "0", 0.18215, 256, "centre", [4, 32, 32], 2, 2, [str(c) for c in range(1000)],
        images=sum(shards), images_hash="0", shard=4096, count=sum(shards), shards=shards,
    )  # fmt: skip
    for i, count in enumerate(shards):
        with (tmp_path / f"shard-{i:05d}.bin").open("wb") as file:
            file.truncate(count * manifest.record.itemsize)
    last = np.zeros(1, manifest.record)
    last["label"] = 7
    last["moments"][:, 1, 0], last["moments"][:, 1, 1] = 3, 4
    with (tmp_path / "shard-00312.bin").open("r+b") as file:
        file.seek(3214 * manifest.record.itemsize)
        file.write(last.tobytes())
    (tmp_path / "manifest.json").write_text(json.dumps(asdict(manifest)))
    done = subprocess.run([sys.executable, "-c", LARGE, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 2 and mebibytes < 100, done.stdout


def test_too_many_files_are_explained(image_folder, tmp_path):
    config = EncodeConfig(resolution=8, shard=1)
    encode(open_images(image_folder), open_codec("pixels"), tmp_path / "s", config, torch.device("cpu"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limits[1]))
    try:
        with pytest.raises(OSError, match=r"24 shards are more files than this process may open; raise .*ulimit -n"):
            LatentStore(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
