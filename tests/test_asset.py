"""What assets/ holds: the released model samples the digits asked for; the classifier and the VAE are as recorded."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import fpdm
from fpdm.data.batches import to_signed, to_uint8
from fpdm.data.codec import open_codec
from fpdm.evaluation.classifier import ResidualClassifier
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.weights import weights_key

ASSET = Path(__file__).parents[1] / "assets" / "fpdm-digits"


@pytest.fixture(scope="module")
def source():
    return fpdm.load_source(ASSET, device="cpu")


@pytest.mark.parametrize(
    "settings", [{"budget": 60, "iterations": 1, "sampler": "ab2"}, {"protocol": "paper-ddim-140"}]
)
def test_samples_are_the_digits_asked_for(source, settings):
    """By the nearest real digits, which name 96 % of real ones rightly (5-fold)."""
    images, labels, _ = load_labelled("digits", 32)
    neighbours = KNeighborsClassifier(5).fit(images[:, 0].flatten(1).numpy(), labels)
    drawn = fpdm.sample(source, 60, classes=list(range(10)), **settings)
    named = torch.tensor(neighbours.predict(drawn[:, 0].flatten(1).numpy()))
    assert (named == torch.arange(60) % 10).float().mean() > 0.85
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 60


def test_it_stands_alone():
    facts = json.loads((ASSET / "sampling.json").read_text())
    assert facts["codec"] == "vae" and facts["class_names"] == [str(digit) for digit in range(10)]
    total = sum(path.stat().st_size for path in ASSET.rglob("*") if path.is_file())
    assert total < 8e6
    card = (ASSET / "README.md").read_text()
    assert "1,095,840" in card and "UCI" in card and "license: apache-2.0" in card


def test_the_classifier_is_the_one_of_the_recorded_scores():
    """docs/results/cifar10.md names these weights; its accuracy is of the held-out tenth."""
    folder = ASSET.parent / "cifar10-classifier"
    facts = ResidualClassifier.load(folder).facts
    assert weights_key(str(folder / "model.safetensors"), "") == "dceb88dea6ec6c6d"
    assert facts.accuracy["32"] > 0.8 and len(facts.class_names) == 10 and facts.training["images"] == 45_018


def test_the_vae_of_cifar10_restores_what_it_never_saw():
    """Digits are no photographs, and still come back."""
    codec = open_codec(str(ASSET.parent / "cifar10-vae"))
    images, _, _ = load_labelled("digits@held-out", 32, most=20)
    with torch.no_grad():
        restored = to_uint8(codec.decode(codec.encode(to_signed(images)).mean))
    error = (restored.float() - images.float()).square().mean() / 255**2
    assert codec.channels == 4 and codec.downsampling == 4 and error < 0.02
