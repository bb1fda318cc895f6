"""The book of scores: what a score belongs to, and that it is computed once."""

import dataclasses

import pytest
import torch
from torch import nn

from fpdm.evaluation.comparison import Contender, Score, ScoreBook
from fpdm.sampling.settings import SamplingConfig

ONE, OTHER = (Contender(name, name, None) for name in ("one", "other"))


@pytest.fixture
def computed(monkeypatch):
    """What was computed, in place of computing it: the scores are its numbers."""
    found = []

    def compute(book, contender, config):
        found.append((contender.name, config))
        return Score(len(found), 5, 60.0, 0.1, 1.0)

    monkeypatch.setattr(ScoreBook, "compute", compute)
    return found


def book(path, images=10, key="features") -> ScoreBook:
    return ScoreBook(path / "scores.json", nn.Identity(), key, torch.randn(8, 2), images, 4)


def test_a_score_is_computed_once_and_kept(tmp_path, computed):
    config = SamplingConfig(steps=5)
    assert book(tmp_path).score(ONE, config).distance == book(tmp_path).score(ONE, config).distance == 1
    assert computed == [("one", config)]


def test_what_a_score_depends_on(tmp_path, computed):
    """Weights, settings, seed, number of images and features; nothing else."""
    config = SamplingConfig(steps=5)
    book(tmp_path).score(ONE, config)
    assert book(tmp_path).knows(ONE._replace(name="renamed"), SamplingConfig(steps=5, sampler="ddim"))
    for contender, changed, changes in (
        (OTHER, config, {}), (ONE, SamplingConfig(steps=6), {}), (ONE, SamplingConfig(steps=5, seed=1), {}),
        (ONE, SamplingConfig(steps=5, reuse=False), {}), (ONE, config, {"images": 11}), (ONE, config, {"key": "k"}),
    ):  # fmt: skip
        assert not book(tmp_path, **changes).knows(contender, changed)


def test_a_new_option_leaves_the_scores_known(tmp_path, computed):
    book(tmp_path).score(ONE, SamplingConfig(steps=5))
    later = dataclasses.make_dataclass("Later", [("new", int, 3)], bases=(SamplingConfig,))
    assert book(tmp_path).knows(ONE, later(steps=5)) and not book(tmp_path).knows(ONE, later(steps=5, new=4))
