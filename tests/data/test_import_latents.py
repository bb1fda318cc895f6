"""Latents of other programs, written here in their layouts, come back from a store as they were."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from fpdm.data import importing
from fpdm.data.codec import open_codec
from fpdm.data.importing import import_latents
from fpdm.data.latents import LatentStore

SHAPE = (4, 6, 6)


def draws(count, seed=0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def everything(folder, mirrored=False) -> tuple[np.ndarray, list[int]]:
    store = LatentStore(folder)
    batch = store.read(np.arange(len(store)), np.full(len(store), mirrored))
    mean, std = batch.moments()
    assert std is None
    return mean.numpy(), batch.labels.tolist()


def rounded(values) -> np.ndarray:
    return np.asarray(values).astype(np.float16).astype(np.float32)


def save_pairs(root, latents, labels, names, name="set"):
    for kind, values in (("features", latents), ("labels", labels)):
        (root / f"{name}_{kind}").mkdir(parents=True, exist_ok=True)
        for file, value in zip(names, values, strict=True):
            np.save(root / f"{name}_{kind}" / f"{file}.npy", value)


@pytest.fixture
def pairs(tmp_path):
    """12 latents, one per file, named 0.npy .. 11.npy, of classes 0..2."""
    latents = draws(12)
    save_pairs(tmp_path / "in", latents, [np.int64(i % 3) for i in range(12)], range(12))
    return tmp_path / "in", latents


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 1 and 3 raw latents with their mirror images, of classes 0..8."""
    root, latents, flipped = tmp_path / "in", draws(9), draws(9, seed=1)
    root.mkdir()
    for i, (first, last) in enumerate(((0, 5), (5, 6), (6, 9))):
        tensors = {"latents": latents[first:last], "latents_flip": flipped[first:last]}
        tensors = {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
        save_file(tensors | {"labels": torch.arange(first, last)}, root / f"latents_rank00_shard00{i}.safetensors")
    return root, latents, flipped


def test_pairs_in_numeric_order(pairs, tmp_path):
    source, latents = pairs
    manifest = import_latents(source, tmp_path / "out", shard=5)
    values, labels = everything(tmp_path / "out")
    assert np.array_equal(values, rounded(latents)) and labels == [0, 1, 2] * 4
    assert manifest.shards == [5, 5, 2] and manifest.class_names == ["0", "1", "2"]
    assert (manifest.flips, manifest.parts, manifest.shape) == (1, 1, list(SHAPE))
    assert (manifest.codec, manifest.fingerprint, manifest.scale, manifest.resolution) == (None,) * 4
    assert manifest.std == pytest.approx(latents.std(), rel=1e-3)


def test_batches_in_files_of_any_dtype_and_names(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 3)  # so that a batch spans files
    latents, names = draws(11), ["a", "b", "c"]
    parts = [latents[:2].astype(np.float64), latents[2:10].astype(np.float16), latents[10:]]
    save_pairs(tmp_path / "in", parts, [np.arange(2), np.arange(2, 10, dtype=np.int32), np.array([10])], names)
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(12)))
    manifest = import_latents(
        tmp_path / "in", tmp_path / "out", scale=0.2, resolution=48, class_names=tmp_path / "names.txt"
    )
    values, labels = everything(tmp_path / "out")
    assert np.array_equal(values, rounded(latents)) and labels == list(range(11))
    assert len(manifest.class_names) == 12 and manifest.class_names[3] == "class 3"
    assert (manifest.scale, manifest.resolution) == (0.2, 48)  # noted, not applied: these latents are scaled


def test_several_sets_ask_for_a_name(pairs, tmp_path):
    source, _ = pairs
    other = draws(2, seed=5)
    save_pairs(source, other, [np.array([1]), np.array([0])], range(2), name="other")
    with pytest.raises(ValueError, match="several sets, other, set; choose one with --name"):
        import_latents(source, tmp_path / "out")
    import_latents(source, tmp_path / "out", name="other")
    values, labels = everything(tmp_path / "out")
    assert np.array_equal(values, rounded(other)) and labels == [1, 0]
    with pytest.raises(FileNotFoundError, match="none_features: no such folder"):
        import_latents(source, tmp_path / "b", name="none")


@pytest.mark.parametrize(("kind", "there"), [("features", "labels"), ("labels", "features")])
def test_missing_partner_is_named(pairs, tmp_path, kind, there):
    source, _ = pairs
    (source / f"set_{there}" / "10.npy").unlink()
    with pytest.raises(ValueError, match=rf"set_{kind}/10\.npy: no file of that name in .*set_{there}"):
        import_latents(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "value", "says"),
    [
        ("labels/3", np.float32(1), r"labels/3\.npy: labels are float32 .*must be integers"),
        ("labels/3", np.int64(-1), r"labels/3\.npy: label -1"),
        ("labels/3", np.int64(2**40), r"labels/3\.npy: label 1099511627776"),
        ("labels/3", np.zeros(2, int), r"features/3\.npy: latents \(1, 4, 6, 6\), .* need \(2, 4, 6, 6\)"),
        ("labels/3", np.zeros((1, 3), int), r"labels/3\.npy: labels are int64 \(1, 3\)"),
        ("features/3", np.full(SHAPE, 7e4, np.float32), r"features/3\.npy: latents up to 7e\+04 do not fit float16"),
        ("features/3", np.full(SHAPE, np.nan, np.float32), r"features/3\.npy: latents up to nan"),
        ("features/3", np.zeros(SHAPE, np.int16), r"features/3\.npy: latents must be floating-point"),
        ("features/3", draws(1, shape=(3, 6, 6))[0], r"features/3\.npy: latents \(1, 3, 6, 6\)"),
    ],
)
def test_files_are_checked(pairs, tmp_path, file, value, says):
    source, _ = pairs
    np.save(source / f"set_{file}.npy", value)
    with pytest.raises(ValueError, match=says):
        import_latents(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:200], lambda content: content.replace(b"}", b"{", 1)], ids=["cut", "header"]
)
def test_damaged_files_are_named(pairs, tmp_path, damage):
    """numpy has an error of its own kind for a header whose braces do not match."""
    path = pairs[0] / "set_features" / "7.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"7\.npy: not a complete \.npy file .*; extract it again"):
        import_latents(pairs[0], tmp_path / "out")


def test_damaged_shards_are_named(shards, tmp_path):
    path = shards[0] / "latents_rank00_shard001.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"shard001\.safetensors: not a complete safetensors file"):
        import_latents(shards[0], tmp_path / "out", scale=1.0)


def test_raw_shards_are_scaled(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 4)
    source, latents, flipped = shards
    manifest = import_latents(source, tmp_path / "out", scale=0.5)
    assert (manifest.flips, manifest.parts, manifest.scale, manifest.count) == (2, 1, 0.5, 9)
    values, labels = everything(tmp_path / "out")
    assert np.array_equal(values, rounded(latents * 0.5)) and labels == list(range(9))
    assert np.array_equal(everything(tmp_path / "out", mirrored=True)[0], rounded(flipped * 0.5))
    with pytest.raises(ValueError, match=r"scale is not set, .* has no latents_stats\.pt: give --scale, or --vae"):
        import_latents(source, tmp_path / "b")


def save_stats(source, **changes):
    stats = {"mean": torch.arange(4.0).view(1, 4, 1, 1) / 4, "std": torch.arange(1.0, 5).view(1, 4, 1, 1) / 2}
    torch.save(stats | changes, source / "latents_stats.pt")
    return stats["mean"].numpy(), stats["std"].numpy()


def test_stats_normalise_raw_shards(shards, tmp_path):
    source, latents, _ = shards
    mean, std = save_stats(source)
    manifest = import_latents(source, tmp_path / "out", scale=2.0)
    np.testing.assert_allclose(everything(tmp_path / "out")[0], rounded((latents - mean) / std * 2), rtol=2e-3)
    assert (manifest.scale, manifest.latents_mean, manifest.latents_std[3]) == (2.0, [0, 0.25, 0.5, 0.75], 2.0)
    assert import_latents(source, tmp_path / "plain").scale == 1.0


def test_stats_are_checked(shards, tmp_path):
    source = shards[0]
    for change, says in (
        ({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "3 channels, the latents have 4"),
        ({"std": torch.zeros(1, 4, 1, 1)}, "std positive"),
        ({"mean": None}, "not a dict of tensors mean and std"),
    ):
        save_stats(source, **change)
        with pytest.raises(ValueError, match=says):
            import_latents(source, tmp_path / "out")


def test_incomplete_shards(shards, tmp_path):
    source = shards[0]
    save_file({"latents": torch.zeros(2, *SHAPE), "labels": torch.zeros(2, dtype=torch.long)}, source / "z.safetensors")
    with pytest.raises(ValueError, match=r"z\.safetensors: some files have latents_flip and some not"):
        import_latents(source, tmp_path / "out", scale=1.0)
    save_file({"latents": torch.zeros(2, *SHAPE)}, source / "z.safetensors")
    with pytest.raises(ValueError, match=r"z\.safetensors: has no tensor 'labels'"):
        import_latents(source, tmp_path / "b", scale=1.0)


def test_vae_is_recorded_and_checked(pairs, tiny_vae, tmp_path):
    source, _ = pairs
    codec = open_codec(str(tiny_vae))
    manifest = import_latents(source, tmp_path / "out", codec)
    assert (manifest.codec, manifest.fingerprint) == (str(tiny_vae), codec.fingerprint)
    assert (manifest.scale, manifest.resolution) == (0.5, 12)
    for settings, says in (
        ({"scale": 0.3}, "scale 0.3, the VAE's 0.5"),
        ({"resolution": 48}, "resolution 48, the VAE's 12"),
        ({"codec": open_codec("pixels")}, "channels 4, the VAE's 3"),
    ):
        with pytest.raises(ValueError, match=says):
            import_latents(source, tmp_path / "b", **{"codec": codec} | settings)


def test_latents_need_not_be_square(tiny_vae, tmp_path):
    latents = draws(3, shape=(4, 6, 5))
    save_pairs(tmp_path / "in", latents, [np.int64(0)] * 3, range(3))
    manifest = import_latents(tmp_path / "in", tmp_path / "out", open_codec(str(tiny_vae)), resolution=(12, 10))
    assert (manifest.shape, manifest.resolution) == ([4, 6, 5], [12, 10])
    assert np.array_equal(everything(tmp_path / "out")[0], rounded(latents))
    with pytest.raises(ValueError, match="resolution 10x12, the VAE's 12x10"):
        import_latents(tmp_path / "in", tmp_path / "b", open_codec(str(tiny_vae)), resolution=[10, 12])


def test_vae_scales_raw_shards(shards, tiny_vae, tmp_path):
    source, latents, _ = shards
    assert import_latents(source, tmp_path / "out", open_codec(str(tiny_vae))).scale == 0.5
    assert np.array_equal(everything(tmp_path / "out")[0], rounded(latents * 0.5))


def test_vae_must_normalise_as_the_stats_do(shards, tiny_vae, tmp_path):
    source = shards[0]
    mean, std = save_stats(source)
    with pytest.raises(ValueError, match=r"normalises its latents differently from .*latents_stats\.pt"):
        import_latents(source, tmp_path / "a", open_codec(str(tiny_vae)))
    AutoencoderKL.from_pretrained(tiny_vae).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    config |= {"latents_mean": mean.ravel().tolist(), "latents_std": std.ravel().tolist()}
    path.write_text(json.dumps(config))
    manifest = import_latents(source, tmp_path / "out", open_codec(str(tmp_path / "vae")))
    assert (manifest.latents_mean, manifest.scale) == (config["latents_mean"], 0.5)


def test_interrupted_import_continues(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 2)
    source = shards[0]
    whole = import_latents(source, tmp_path / "whole", scale=1.0, shard=5)
    reads, read = [], importing._pieces

    def interrupted(layout, items, normalise):
        if items.start == 7 and not reads:
            raise KeyboardInterrupt
        return read(layout, items, normalise)

    monkeypatch.setattr(importing, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_latents(source, tmp_path / "out", scale=1.0, shard=5)
    with pytest.raises(FileNotFoundError, match="not finished"):
        LatentStore(tmp_path / "out")
    with pytest.raises(ValueError, match=r"scale was 1\.0, is 0\.5"):
        import_latents(source, tmp_path / "out", scale=0.5, shard=5)
    monkeypatch.setattr(importing, "_pieces", lambda layout, items, n: reads.append(items) or read(layout, items, n))
    assert import_latents(source, tmp_path / "out", scale=1.0, shard=5) == whole
    assert reads == [range(7, 9)]


def test_folders_that_are_no_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source .*: no such folder"):
        import_latents(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ValueError, match=r"neither <name>_features and <name>_labels .* nor \*\.safetensors"):
        import_latents(tmp_path, tmp_path / "out")
    (tmp_path / "x_features").mkdir()
    with pytest.raises(FileNotFoundError, match="x_labels: no such folder"):
        import_latents(tmp_path, tmp_path / "out")
    (tmp_path / "x_labels").mkdir()
    with pytest.raises(ValueError, match=r"x_features: no \.npy file"):
        import_latents(tmp_path, tmp_path / "out")
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds both a\.safetensors and x_features"):
        import_latents(tmp_path, tmp_path / "out")


def test_class_names_must_cover_the_labels(pairs, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"names\.txt: 2 names, but a label is 2"):
        import_latents(pairs[0], tmp_path / "out", class_names=tmp_path / "names.txt")
