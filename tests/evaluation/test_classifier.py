"""The classifier whose features images are compared by: what it learns, its folder, and what is refused."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fpdm
from fpdm.commands.train_classifier import main
from fpdm.data.batches import image_batches
from fpdm.data.images import open_images
from fpdm.evaluation.classifier import ClassifierFacts, ResidualClassifier, resized
from fpdm.evaluation.classifier_training import ClassifierConfig, changed, train_classifier

CPU = torch.device("cpu")
SMALL = {"resolution": 8, "widths": (8, 16, 24), "batch_size": 64, "mirror": False, "shift": 1}


@pytest.fixture(scope="module")
def trained():
    return train_classifier(open_images("digits"), ClassifierConfig(**SMALL, steps=150, coarse=4, name="eights"), CPU)


@pytest.fixture(scope="module")
def digits():
    _, images, labels = next(image_batches(open_images("digits@training"), 8, 2000))
    return images, labels


@pytest.fixture
def folder(trained, tmp_path):
    trained.save(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_it_learns_to_tell_digits_apart(trained, digits):
    facts, (images, labels) = trained.facts, digits
    assert facts.accuracy["8"] > 0.9 and 0.3 < facts.accuracy["4"] < facts.accuracy["8"]
    assert facts.class_names == [str(c) for c in range(10)] and facts.training["images"] == len(images) == 1632
    assert (trained.logits(images).argmax(1) == labels).float().mean() > 0.9
    features = trained(images)
    assert features.shape == (1632, 24) and not features.requires_grad
    spread = features.std(0)
    torch.testing.assert_close(spread[spread > 0.1], torch.ones_like(spread[spread > 0.1]), atol=1e-3, rtol=0)
    assert (spread > 0.1).sum() > 12


def test_the_accuracy_is_that_of_images_it_has_not_seen(trained):
    _, images, labels = next(image_batches(open_images("digits@held-out"), 8, 200))
    assert trained.facts.accuracy["8"] == pytest.approx((trained.logits(images).argmax(1) == labels).float().mean())


def test_a_saved_one_has_the_same_features(trained, folder, digits):
    loaded = ResidualClassifier.load(folder)
    images = digits[0][:50]
    assert torch.equal(loaded(images), trained(images)) and loaded.facts == trained.facts
    assert not loaded.training and loaded.name == "eights"
    assert torch.equal(loaded.features(images).pool, loaded(images)) and loaded.features(images).logits is None


def test_the_seed_decides(digits):
    a, b = (train_classifier(open_images("digits"), ClassifierConfig(**SMALL, steps=10), CPU) for _ in range(2))
    c = train_classifier(open_images("digits"), ClassifierConfig(**SMALL, steps=10, seed=1), CPU)
    assert torch.equal(a(digits[0][:8]), b(digits[0][:8])) and not torch.equal(a(digits[0][:8]), c(digits[0][:8]))


def test_images_of_another_resolution_are_resized(trained, digits):
    """Plain colours stay what they are at any resolution; others are filtered before they are reduced."""
    colours = torch.randint(0, 256, (5, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own = trained(colours.expand(5, 3, 8, 8))
    for size in (4, 8, 13, 32):
        torch.testing.assert_close(trained(colours.expand(5, 3, size, size)), own, atol=1e-4, rtol=1e-4)
    board = torch.tensor([0.0, 100.0]).repeat(8)[None] + torch.zeros(16, 1)
    reduced = resized(board.expand(1, 3, 16, 16), 4)
    assert (reduced - 50).abs().max() < 10  # stripes of one pixel are grey


def test_changes_move_mirror_and_coarsen():
    """A ramp says from its values where each pixel came from."""
    ramp = (torch.arange(8, dtype=torch.uint8) * 10).expand(40, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    still = changed(ramp, ClassifierConfig(resolution=8, mirror=False, shift=0), generator)
    assert torch.equal(still, ramp.float())
    moved = changed(ramp, ClassifierConfig(resolution=8, mirror=False, shift=2), generator)
    assert {int(value) for value in moved[:, 0, 0, 3]} == {10, 20, 30, 40, 50}
    mirrored = changed(ramp, ClassifierConfig(resolution=8, mirror=True, shift=0), generator)
    assert {int(value) for value in mirrored[:, 0, 0, 0]} == {0, 70}
    noise = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    coarse = changed(noise, ClassifierConfig(resolution=8, mirror=False, shift=0, coarse=4), generator)
    assert coarse[:20].std() < 0.6 * noise[:20].float().std() and torch.equal(coarse[20:], noise[20:].float())


def test_sets_that_cannot_be_learned_from_are_refused(image_folder, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(200):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    for source, says in (
        (tmp_path / "flat", "images of at least two classes; use a folder or zip of class folders"),
        (image_folder, "2 held-out images: fewer than batch_size=8; use more images"),
    ):
        with pytest.raises(ValueError, match=says):
            train_classifier(open_images(source), ClassifierConfig(**{**SMALL, "batch_size": 8}, steps=10), CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": (8, 8)}, r"widths=\[8, 8\]: three stages"),
        ({"resolution": 8, "shift": 8}, "shift=8: at least 0, at most 7"),
        ({"resolution": 16, "coarse": 16}, "coarse=16: not below resolution=16"),
        ({"steps": 5}, "steps=5: at least 10"),
        ({"batch_size": 1}, "batch_size=1: at least 2"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ValueError, match=says):
        ClassifierConfig(**settings)


def test_missing_and_damaged_folders_are_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent: no config\.json in it; give a folder that train_classifier"):
        ResidualClassifier.load(tmp_path / "absent")
    weights, facts = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damages = {
        "cut": lambda path: (path / "model.safetensors").write_bytes(b"abc"),
        "shapes": lambda path: save_file({**weights, "scale": torch.ones(3)}, path / "model.safetensors"),
        "numbers": lambda path: save_file({**weights, "scale": weights["scale"] / 0}, path / "model.safetensors"),
        "names": lambda path: save_file({"scale": torch.ones(24)}, path / "model.safetensors"),
        "text": lambda path: (path / "config.json").write_text("{"),
        "unknown": lambda path: (path / "config.json").write_text(json.dumps({**facts, "depth": 3})),
        "stages": lambda path: (path / "config.json").write_text(json.dumps({**facts, "widths": [8]})),
    }
    for name, damage in damages.items():
        shutil.copytree(folder, tmp_path / name)
        damage(tmp_path / name)
        with pytest.raises(ValueError, match=r"damaged \(.*\); make it again") as error:
            ResidualClassifier.load(tmp_path / name)
        assert "\n" not in str(error.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in it"):
        ResidualClassifier.load(folder)


def test_images_are_scored_by_it(folder, tmp_path):
    """The reference against itself is at distance 0; another classifier's features are not taken for these."""
    _, images, _ = next(image_batches(open_images("digits@training"), 8, 2000))
    np.savez(tmp_path / "samples.npz", images.permute(0, 2, 3, 1).numpy())
    settings = {"features": "classifier", "cache": tmp_path / "cache"}
    scores = fpdm.evaluate(tmp_path / "samples.npz", "digits@training", classifier=folder, **settings)
    assert abs(scores["FD-eights@1632"]) < 1e-3
    whole = fpdm.evaluate(tmp_path / "samples.npz", "digits", classifier=folder, **settings)
    assert whole["FD-eights@1632"] > 1e-3 and (scores["reference_images"], whole["reference_images"]) == (1632, 1797)
    other = ResidualClassifier(ClassifierFacts("eights", 8, [8, 16, 24], ["a", "b"]))
    other.save(tmp_path / "other")
    fpdm.evaluate(tmp_path / "samples.npz", "digits", classifier=tmp_path / "other", **settings)
    keys = {path.name.split("-")[1] for path in (tmp_path / "cache").iterdir()}
    assert len(keys) == 2


def test_the_command_writes_a_folder_once(tmp_path, monkeypatch, caplog):
    words = ["--images", "digits", "--out", tmp_path / "made", "--resolution", 8, "--widths", "8,8,8", "--steps", 20,
             "--batch-size", 64, "--name", "tiny"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_classifier.py", *map(str, words)])
    with caplog.at_level(logging.INFO, "fpdm"):
        main()
    assert ResidualClassifier.load(tmp_path / "made").facts.training["steps"] == 20
    assert "made: accuracy on held-out images " in caplog.text and "% at 8 pixels" in caplog.text
    with pytest.raises(ValueError, match="already exists and is not empty; choose another folder"):
        main()
