"""Statistics in one pass against numpy on all features at once, and the Inception score against torch-fidelity's."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from fpdm.evaluation.accumulate import Accumulator, FeatureMoments, InceptionScore, random_splits
from fpdm.evaluation.features import Features

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(500, 12, generator=GENERATOR) @ torch.randn(12, 12, generator=GENERATOR) + 100
LOGITS = 3 * torch.randn(503, 40, generator=GENERATOR)


def moments(parts) -> FeatureMoments:
    made = FeatureMoments()
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
    first.merge(FeatureMoments())
    second.merge(first)
    np.testing.assert_allclose(
        second.statistics().covariance, np.cov(FEATURES.double().numpy().T), rtol=1e-8, atol=1e-8
    )


def test_features_that_are_not_finite_are_refused():
    for bad in (torch.nan, torch.inf, -torch.inf):
        features = FEATURES.clone()
        features[77, 3] = bad
        made = Accumulator.empty()
        made.add(Features(features), random_splits(500))
        with pytest.raises(ValueError, match="NaN or infinity"):
            made.arrays()
        with pytest.raises(ValueError, match="NaN or infinity"):
            made.pool.statistics()
    with pytest.raises(ValueError, match=r"1 image\(s\)"):
        moments([FEATURES[:1]]).statistics()


def test_sums_stay_where_the_features_are(host_reads):
    """Nothing is read back while features are added: the host would wait for a GPU at each batch."""
    made = Accumulator.empty()
    with host_reads() as reads:
        for rows in torch.arange(500).split(100):
            made.add(Features(FEATURES[rows], FEATURES[rows, :5], LOGITS[rows]), random_splits(500)[rows])
    assert reads.count == 0 and made.pool.count == 500
    assert all(isinstance(part.total, torch.Tensor) for part in (made.pool, made.spatial))
    with host_reads() as reads:
        made.arrays()
    assert reads.count == 2  # whether they are finite


def test_devices_without_float64_sum_on_the_cpu():
    """MPS; here a tensor that says it is there, and refuses what MPS refuses."""

    class OnMPS(torch.Tensor):
        device = torch.device("mps")

        def double(self):
            raise TypeError("MPS has no float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    made = moments([FEATURES[:200].as_subclass(OnMPS), FEATURES[200:].as_subclass(OnMPS)])
    np.testing.assert_allclose(made.statistics().mean, FEATURES.double().numpy().mean(0), rtol=1e-12)


def test_inception_score_is_torch_fidelitys():
    splits, whole = random_splits(len(LOGITS)), InceptionScore()
    for rows in torch.arange(len(LOGITS)).tensor_split(9):
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
