import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from fpdm.data.images import image_batches, open_images
from fpdm.evaluation.features import Inception, cached_classifier, extract, train_classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    _, images, labels = next(image_batches(open_images("digits"), 16, 600))
    return images, labels


def test_classifier_learns_its_reference_and_is_kept(digits, tmp_path):
    images, labels = digits
    model, key = cached_classifier(images, labels, 10, tmp_path, CPU)
    assert (model.logits(images).argmax(1) == labels).float().mean() > 0.98
    torch.testing.assert_close(model(images).std(0), torch.ones(64), atol=1e-3, rtol=0)

    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again, same = cached_classifier(images, labels, 10, tmp_path, CPU)
    assert same == key and file.stat().st_mtime_ns == written
    assert torch.equal(again(images[:8]), model(images[:8]))
    _, other = cached_classifier(images[:500], labels[:500], 10, tmp_path, CPU)
    assert other != key


def test_same_seed_same_classifier(digits):
    images, labels = digits
    state = torch.get_rng_state()
    a, b = (train_classifier(images[:200], labels[:200], 10, CPU) for _ in range(2))
    torch.testing.assert_close(a(images[:8]), b(images[:8]))
    assert torch.equal(torch.get_rng_state(), state)  # and nothing else notices


def test_one_class_cannot_be_told_apart(digits):
    with pytest.raises(ValueError, match="at least two classes"):
        train_classifier(*digits, 1, CPU)


def test_only_uint8_images(digits):
    images, labels = digits
    with pytest.raises(ValueError, match="not uint8"):
        extract(train_classifier(images, labels, 10, CPU), [images.float()], 600, CPU)


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """A file like torch-fidelity's, with random weights."""
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    path = tmp_path / "inception.pth"
    network = fidelity.FeatureExtractorInceptionV3.__new__(fidelity.FeatureExtractorInceptionV3)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(fidelity.torch, "load", lambda *a, **k: {})
        network.__init__("x", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)
    return path, network


def test_inception_from_a_local_file(inception_weights):
    path, network = inception_weights
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = Inception(str(path))(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, network(images)[0])


def test_inception_without_weights_says_what_to_do(inception_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Inception(str(tmp_path / "absent.pth"))
    with pytest.raises(FileNotFoundError, match="--inception PATH"):
        Inception()
