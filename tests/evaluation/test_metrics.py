"""Metrics against known distances, scipy's matrix root and torch-fidelity itself."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial import cKDTree
from torch_fidelity.metric_fid import fid_statistics_to_metric

from fpdm.evaluation.metrics import (
    Statistics,
    frechet_distance,
    halves,
    memorisation,
    nearest,
    precision_recall,
    score_name,
    statistics,
)

GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(600, 16, generator=GENERATOR) @ torch.randn(16, 16, generator=GENERATOR)
B = torch.randn(500, 16, generator=GENERATOR) @ torch.randn(16, 16, generator=GENERATOR) + 0.3


def test_against_the_matrix_root_and_torch_fidelity():
    a, b = statistics(A), statistics(B)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    direct = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(direct, rel=1e-6)
    theirs = fid_statistics_to_metric(
        {"mu": a.mean, "sigma": a.covariance}, {"mu": b.mean, "sigma": b.covariance}, verbose=False
    )
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_gaussians_of_known_distance():
    """N(0, 1) and N(2, 9) in 3 dimensions: 3 * (2^2 + (3 - 1)^2) = 24."""
    a = Statistics(np.zeros(3), np.eye(3), 10)
    b = Statistics(np.full(3, 2.0), 9 * np.eye(3), 10)
    assert frechet_distance(a, b) == pytest.approx(24)


def test_shifted_copy():
    assert frechet_distance(statistics(A), statistics(A + 2)) == pytest.approx(16 * 4, rel=1e-6)


@pytest.mark.parametrize("dimensions", [16, 300])
def test_reference_against_itself(dimensions):
    """Also with fewer images than dimensions, where the covariance is singular."""
    features = torch.randn(100, dimensions, generator=GENERATOR) * 20
    assert abs(frechet_distance(statistics(features), statistics(features))) < 1e-3


def test_statistics():
    stats = statistics(A)
    np.testing.assert_allclose(stats.mean, A.double().mean(0).numpy())
    np.testing.assert_allclose(stats.covariance, np.cov(A.double().numpy().T))
    assert stats.mean.dtype == np.float64 and stats.count == 600
    with pytest.raises(ValueError, match="at least 2"):
        statistics(A[:1])
    with pytest.raises(ValueError, match="NaN or infinity"):
        statistics(torch.full((4, 3), float("nan")))
    with pytest.raises(ValueError, match="16 and 3 dimensions"):
        frechet_distance(stats, statistics(A[:, :3]))


def test_halves_are_disjoint_and_whole():
    numbered = torch.arange(11.0)[:, None].expand(11, 2)
    a, b = halves(numbered)
    assert (len(a), len(b)) == (5, 6)
    assert sorted([*a[:, 0].tolist(), *b[:, 0].tolist()]) == list(range(11))


def test_precision_and_recall_know_which_set_is_which():
    """Samples from one of two modes are all realistic, but cover half of the reference."""
    reference = torch.cat([torch.randn(200, 4, generator=GENERATOR), torch.randn(200, 4, generator=GENERATOR) + 50])
    precision, recall = precision_recall(torch.randn(200, 4, generator=GENERATOR), reference)
    assert precision > 0.8
    assert 0.3 < recall < 0.55


def test_names():
    assert score_name("inception", 50_000) == "FID-50K"
    assert score_name("inception", 1000) == "FID@1000"
    assert score_name("cnn", 50_000) == "FD-cnn@50000"


def test_nearest_against_a_tree():
    found = nearest(A, B)
    np.testing.assert_allclose(found, cKDTree(B.double()).query(A.double())[0], rtol=1e-5)
    assert nearest(1000 + B, 1000 + B).max() == 0  # far from 0, where a distance by way of products is rounded


def test_memorisation_of_copies_and_of_fresh_samples():
    """Copies of training images are all nearer than held-out ones; fresh samples are as the held-out ones are."""
    draw = lambda count: torch.randn(count, 8, generator=GENERATOR)  # noqa: E731
    training, held_out = draw(2000), draw(3000)
    copies = memorisation(training[:500], training, held_out)
    assert copies == (0, pytest.approx(float(nearest(held_out, training).median())), 1)
    fresh = memorisation(draw(3000), training, held_out)
    assert fresh.nearest == pytest.approx(fresh.nearest_held_out, rel=0.05)
    assert fresh.memorised == pytest.approx(0.01, abs=0.006)  # three standard deviations of such shares
    half = memorisation(torch.cat([training[:1000], draw(1000)]), training, held_out)
    assert half.memorised == pytest.approx(0.505, abs=0.01)
    assert memorisation(training[:500] + 1e-3, training, held_out).memorised == 1
