"""What scores are made of, computed on the device, against the CPU's."""

import numpy as np
import pytest
import torch

from fpdm.devices import process_state
from fpdm.evaluation.accumulate import Accumulator, FeatureMoments, InceptionScore, random_splits
from fpdm.evaluation.extraction import RESULT, gather
from fpdm.evaluation.features import Classifier, Features, Inception
from fpdm.evaluation.samples import Samples

pytestmark = pytest.mark.gpu


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over that of what is expected; both must vary from image to image."""
    assert (expected.std(0) > 0).any()
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


def images(count: int, resolution: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, resolution, resolution), dtype=torch.uint8, generator=generator)


@pytest.fixture
def classifier():
    """Makes a classifier with random weights, always the same."""

    def made(device) -> Classifier:
        torch.manual_seed(0)
        return Classifier(10).eval().requires_grad_(False).to(device)

    return made


@pytest.fixture
def npz(tmp_path):
    """53 images as sample.py keeps them."""
    path = tmp_path / "samples.npz"
    np.savez(path, images(53, 16).permute(0, 2, 3, 1).numpy())
    return Samples(str(path))


def test_statistics_are_numpys(device):
    """The mean is far from zero against the deviation, where one pass in float32 would fail."""
    generator = torch.Generator().manual_seed(0)
    features, moments = torch.randn(500, 12, generator=generator) + 100, FeatureMoments()
    for part in features.split(64):
        moments.add(part.to(device))
    values, found = features.double().numpy(), moments.statistics()
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(values, rowvar=False), rtol=1e-8, atol=1e-8)


def test_inception_score_is_the_cpus(device):
    logits = 3 * torch.randn(103, 40, generator=torch.Generator().manual_seed(0))
    scores = []
    for on in (device, "cpu"):
        score = InceptionScore()
        score.add(logits.to(on), random_splits(len(logits)))
        scores.append(score.score())
    assert scores[0] == pytest.approx(scores[1], rel=1e-9) and scores[1][0] > 2


def test_sums_do_not_wait_for_the_device(no_waiting, device):
    """A chunk of images, of which each batch is extracted while the next one is read."""
    sums, splits = Accumulator.empty(), random_splits(40).to(device)
    features = Features(*(torch.randn(20, size, device=device) for size in (12, 5, 8)))
    sums.add(features, splits[:20])  # makes the tensors that are added to
    no_waiting()
    sums.add(features, splits[20:])
    no_waiting(False)
    assert sums.pool.statistics().count == sums.spatial.count == 40


def test_classifier_features_are_the_cpus(device, classifier):
    found, expected = (classifier(on)(images(6).to(on)) for on in (device, "cpu"))
    assert found.device.type == device.type and relative(found, expected) < 1e-4


def test_inception_features_are_the_cpus(device, inception_weights):
    ours, theirs = (Inception(str(inception_weights)).to(on).eval() for on in (device, "cpu"))
    found, expected = ours.features(images(3).to(device)), theirs.features(images(3))
    for kind, dimensions in {"pool": 2048, "spatial": 2023, "logits": 1008}.items():
        assert getattr(found, kind).shape == (3, dimensions)
        assert relative(getattr(found, kind), getattr(expected, kind)) < 1e-3, kind


def test_scores_of_inception_are_summed_up(device, inception_weights, npz, tmp_path):
    """What evaluate.py does without --features, of few images."""
    few = Samples(npz.source)
    few.count = 12
    extractor = Inception(str(inception_weights)).to(device).eval()
    gathered = gather(few, extractor, tmp_path / "f", process_state(), batch_size=5)
    features = torch.cat([extractor(batch.to(device)).cpu() for batch in few.batches(12)])
    assert gathered.pool.covariance.shape == (2048, 2048) and gathered.spatial.count == 12
    np.testing.assert_allclose(gathered.pool.mean, features.double().mean(0).numpy(), rtol=1e-3, atol=1e-4)
    assert gathered.inception_score[0] >= 1 and relative(gathered.kept, features) < 1e-3


class Interrupted:
    """A classifier that is stopped at one of its calls."""

    name = "cnn"

    def __init__(self, classifier: Classifier, stop_at: int = 0):
        self.classifier, self.stop_at, self.calls = classifier, stop_at, 0

    def features(self, pixels: torch.Tensor) -> Features:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return self.classifier.features(pixels)


def test_extraction_goes_on_where_it_was_stopped(device, classifier, npz, tmp_path):
    settings = {"batch_size": 4, "chunk": 12, "keep": 20}
    with pytest.raises(KeyboardInterrupt):
        gather(npz, Interrupted(classifier(device), 8), tmp_path / "f", process_state(), **settings)
    rest = Interrupted(classifier(device))
    gathered = gather(npz, rest, tmp_path / "f", process_state(), **settings)
    assert rest.calls == 14 - 6 and {p.name for p in (tmp_path / "f").iterdir()} == {RESULT, "kept.f32"}
    expected = torch.cat([classifier("cpu")(batch) for batch in npz.batches(64)]).double().numpy()
    np.testing.assert_allclose(gathered.pool.mean, expected.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gathered.pool.covariance, np.cov(expected.T), rtol=1e-3, atol=1e-7)
    kept = np.unique(np.linspace(0, 52, 20).round().astype(int))
    np.testing.assert_allclose(gathered.kept.numpy(), expected[kept], rtol=1e-3, atol=1e-5)
