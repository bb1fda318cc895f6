"""Statistics in one pass against numpy on all features at once, and the Inception score against torch-fidelity's."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from fpdm.evaluation.accumulate import Accumulator, InceptionScore, Moments, random_splits
from fpdm.evaluation.features import Features

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(500, 12, generator=GENERATOR) @ torch.randn(12, 12, generator=GENERATOR) + 100
LOGITS = 3 * torch.randn(503, 40, generator=GENERATOR)


def moments(parts) -> Moments:
    made = Moments()
    for part in parts:
        made.add(part)
    return made


@pytest.mark.parametrize("size", [1, 7, 500])
def test_mean_and_covariance_in_batches(size):
    """The mean is far from zero against the deviation, where one pass in float32 would fail."""
    stats = moments(FEATURES.split(size)).statistics()
    values = FEATURES.double().numpy()
    np.testing.assert_allclose(stats.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.covariance, np.cov(values, rowvar=False), rtol=1e-8, atol=1e-8)
    assert stats.count == 500


def test_parts_merge_in_any_order():
    first, second = moments(FEATURES[:300].split(64)), moments(FEATURES[300:].split(64))
    first.merge(Moments())
    second.merge(first)
    np.testing.assert_allclose(
        second.statistics().covariance, np.cov(FEATURES.double().numpy().T), rtol=1e-8, atol=1e-8
    )


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        moments([torch.full((3, 2), torch.nan)])
    with pytest.raises(ValueError, match=r"1 image\(s\)"):
        moments([FEATURES[:1]]).statistics()


def test_inception_score_is_torch_fidelitys():
    splits, whole = random_splits(len(LOGITS)), InceptionScore()
    for rows in np.array_split(np.arange(len(LOGITS)), 9):
        part = InceptionScore()
        part.add(LOGITS[rows], splits[rows])
        whole.merge(part)
    theirs = isc_features_to_metric(LOGITS)
    mean, deviation = whole.score()
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_fewer_images_than_splits_have_no_inception_score():
    few = InceptionScore()
    few.add(LOGITS[:5], random_splits(5))
    assert np.isnan(few.score()).all()


def test_saved_and_loaded():
    made = Accumulator.empty()
    made.add(Features(FEATURES, FEATURES[:, :5], LOGITS[:500]), random_splits(500))
    again = Accumulator.of(made.arrays())
    assert again.pool.count == 500 and again.inception.score() == made.inception.score()
    np.testing.assert_array_equal(again.spatial.statistics().covariance, made.spatial.statistics().covariance)
    bare = Accumulator.empty()
    bare.add(Features(FEATURES), random_splits(500))
    again = Accumulator.of(bare.arrays())
    assert again.spatial.count == 0 and again.inception.labels is None
