"""The released model: opens, draws, and what it draws are the digits that it was asked for."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import fpdm
from fpdm.evaluation.samples import load_labelled

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
