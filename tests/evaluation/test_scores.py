"""Scores named for what they are, references as files, the bootstrap, and the self-test that must be able to fail."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import bootstrap_deviation, frechet_distance, halves, noise_floor, statistics
from fpdm.evaluation.references import has_images, is_reference, load_reference, save_reference
from fpdm.evaluation.scores import score
from fpdm.evaluation.selftest import check_metrics

ROOT = Path(__file__).parents[2]
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(1000, 8, generator=GENERATOR)


def ours(scores, names) -> bool:
    """Whether the scores have these names, in this order; a fork may have others besides."""
    return [name for name in scores if name in names] == names


def gathered(features, spatial=None, inception=None, kept=True) -> Gathered:
    return Gathered(statistics(features), spatial and statistics(spatial), inception, features if kept else None)


def test_all_scores_of_equal_and_of_different_sets():
    a, b = halves(FEATURES)
    same, other = score(gathered(a), gathered(b), "cnn"), score(gathered(a + 3), gathered(b), "cnn")
    assert ours(same, ["FD-cnn@500", "noise_floor", "kid", "kid_std", "precision", "recall"])
    assert same["FD-cnn@500"] < 0.2 and abs(same["kid"]) < 0.05 and same["precision"] > 0.7
    assert other["FD-cnn@500"] > 60 and other["kid"] > 1 and other["precision"] < 0.1
    assert same["noise_floor"] == pytest.approx(noise_floor(b))


def test_inception_has_more():
    a, b = (Gathered(statistics(x), statistics(x[:, :3]), (3.5, 0.1), x) for x in halves(FEATURES))
    scores = score(a, b, "inception", resamples=8)
    assert ours(scores, ["FID@500", "FID@500_std", "sFID@500", "IS", "IS_std", "noise_floor", "kid", "kid_std",
                         "precision", "recall"])  # fmt: skip
    assert scores["sFID@500"] == pytest.approx(frechet_distance(a.spatial, b.spatial)) and scores["IS"] == 3.5


def test_fifty_thousand_alone_are_called_so():
    stats = statistics(FEATURES)
    many = Gathered(stats._replace(count=50_000), stats._replace(count=50_000), None, None)
    bare = Gathered(stats, stats, None, None)
    fid, distance = score(many, bare, "inception"), score(many._replace(spatial=None), bare, "dinov2")
    assert ours(fid, ["FID-50K", "sFID-50K"]) and ours(distance, ["FD-dinov2@50000"])
    of_single_images = {"FID-50K_std", "FD-dinov2@50000_std", "IS", "noise_floor", "kid", "precision", "recall"}
    assert not of_single_images & (fid.keys() | distance.keys())


def test_too_few_images():
    with pytest.raises(ValueError, match="3 images: precision and recall need 4"):
        score(gathered(FEATURES[:3]), gathered(FEATURES), "cnn")


def test_bootstrap_is_the_spread_over_sets():
    """Against sets drawn anew: the deviation that resampling one of them foretells is theirs, within a third."""
    reference = statistics(torch.randn(20_000, 4, generator=GENERATOR))
    sets = [torch.randn(400, 4, generator=GENERATOR) + 0.5 for _ in range(60)]
    true = np.std([frechet_distance(statistics(x), reference) for x in sets], ddof=1)
    foretold = np.mean([bootstrap_deviation(x, reference, 60, seed=i) for i, x in enumerate(sets[:6])])
    assert foretold == pytest.approx(true, rel=0.35)


def test_reference_as_a_file(tmp_path):
    path, facts = tmp_path / "sub" / "r.npz", {"extractor": "inception", "key": "k", "resolution": 64}
    made = Gathered(statistics(FEATURES), statistics(FEATURES[:, :3]), None, FEATURES[:100])
    save_reference(path, made, facts)
    assert is_reference(str(path)) and not has_images(str(path))
    opened = load_reference(str(path), facts)
    for ours, theirs in zip(opened[:2], made[:2], strict=True):
        np.testing.assert_array_equal(ours.covariance, theirs.covariance)
        assert ours.count == 1000
    assert torch.equal(opened.kept, FEATURES[:100])
    for name, value in (("extractor", "cnn"), ("key", "other"), ("resolution", 32)):
        with pytest.raises(ValueError, match=f"made with {name} {facts[name]}, this is for {value}"):
            load_reference(str(path), facts | {name: value})


def test_reference_of_adm(tmp_path):
    """Statistics, spatial statistics and 10,000 images in one file; it says nothing of itself."""
    stats = statistics(FEATURES)
    arrays = {"mu": stats.mean, "sigma": stats.covariance, "mu_s": stats.mean, "sigma_s": stats.covariance}
    np.savez(tmp_path / "VIRTUAL.npz", **arrays, arr_0=np.zeros((5, 8, 8, 3), np.uint8))
    source = str(tmp_path / "VIRTUAL.npz")
    assert is_reference(source) and has_images(source)
    opened = load_reference(source, {"extractor": "inception", "key": "torch-fidelity", "resolution": 256})
    assert opened.kept is None and frechet_distance(opened.pool, stats) < 1e-6 and opened.spatial is not None
    with pytest.raises(ValueError, match="made with extractor inception, this is for dinov2"):
        load_reference(source, {"extractor": "dinov2"})
    np.savez(tmp_path / "images.npz", np.zeros((5, 8, 8, 3), np.uint8))
    assert not is_reference(str(tmp_path / "images.npz")) and not is_reference(str(tmp_path))


def test_self_test_passes_here_and_can_fail(monkeypatch):
    assert all(check.passed for check in check_metrics(FEATURES))
    from fpdm.evaluation import selftest

    monkeypatch.setattr(selftest, "frechet_distance", lambda a, b: 1.05 * frechet_distance(a, b) + 0.01)
    assert sum(not check.passed for check in selftest.check_metrics(FEATURES)) >= 3


@pytest.mark.parametrize("words", [[], ["--tf32"]])
def test_tf32_is_as_asked_for_and_recorded(inception_weights, tmp_path, monkeypatch, words):
    asked, images = [], np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images)
    np.savez(tmp_path / "reference.npz", images[::-1])
    script = str(ROOT / "scripts" / "evaluate.py")
    monkeypatch.setattr("fpdm.devices.allow_tf32", asked.append)
    monkeypatch.setattr(sys, "argv", [
        script, "--samples", str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "reference.npz"),
        "--inception", str(inception_weights), "--cache", str(tmp_path / "cache"), *words,
    ])  # fmt: skip
    runpy.run_path(script, run_name="__main__")
    assert set(asked) == {bool(words)}
    assert json.loads((tmp_path / "score-inception.json").read_text())["settings"]["tf32"] is bool(words)
