import pytest
import torch
from safetensors.torch import save_file

from fpdm.data.batches import image_batches
from fpdm.data.images import open_images
from fpdm.evaluation import features, weights
from fpdm.evaluation.features import (
    Classifier,
    DINOv2,
    Inception,
    cached_classifier,
    train_classifier,
)
from fpdm.evaluation.weights import weights_key


@pytest.fixture(scope="module")
def digits():
    _, images, labels = next(image_batches(open_images("digits"), 16, 600))
    return images, labels


def test_classifier_learns_its_reference_and_is_kept(digits, tmp_path, monkeypatch):
    images, labels = digits
    model, key = cached_classifier(images, labels, 10, tmp_path)
    assert (model.logits(images).argmax(1) == labels).float().mean() > 0.98
    torch.testing.assert_close(model(images).std(0), torch.ones(64), atol=1e-3, rtol=0)

    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again, same = cached_classifier(images, labels, 10, tmp_path)
    assert same == key and file.stat().st_mtime_ns == written
    assert torch.equal(again(images[:8]), model(images[:8]))
    monkeypatch.setattr(features, "CNN_STEPS", 2)
    other_recipe = cached_classifier(images, labels, 10, tmp_path)[1]
    other_images = cached_classifier(images[:500], labels[:500], 10, tmp_path)[1]
    assert len({key, other_recipe, other_images}) == 3


def test_a_kept_classifier_with_damaged_numbers_is_told_of(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CNN_STEPS", 2)
    images, labels = digits
    cached_classifier(images, labels, 10, tmp_path)
    (file,) = tmp_path.iterdir()
    weights = torch.load(file, weights_only=True)
    weights["convolutions.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r"cnn-.*\.pt is damaged \(its features are not finite\); remove it"):
        cached_classifier(images, labels, 10, tmp_path)


def test_same_seed_same_classifier(digits, monkeypatch):
    monkeypatch.setattr(features, "CNN_STEPS", 20)
    images, labels = digits
    state = torch.get_rng_state()
    a, b = (train_classifier(images[:200], labels[:200], 10) for _ in range(2))
    torch.testing.assert_close(a(images[:8]), b(images[:8]))
    assert torch.equal(torch.get_rng_state(), state)  # and nothing else notices


def test_one_class_cannot_be_told_apart(digits):
    with pytest.raises(ValueError, match="at least two classes"):
        train_classifier(*digits, 1)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(weights, "load_state_dict_from_url", refuse)


def test_inception_from_a_local_file(inception_weights):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = Inception(str(inception_weights))
    features = extractor(images)
    assert features.shape == (2, 2048)
    stored = torch.load(inception_weights, weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in extractor.network.state_dict().items())
    assert not torch.equal(features[0], features[1])


def test_inception_from_safetensors(inception_weights, tmp_path):
    stored = torch.load(inception_weights, weights_only=True)
    save_file(stored, tmp_path / "weights.safetensors")
    network = Inception(str(tmp_path / "weights.safetensors")).network
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def test_inception_without_weights_says_what_to_do(offline, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Inception(str(tmp_path / "absent.pth"))
    with pytest.raises(FileNotFoundError, match="--inception PATH"):
        Inception()
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"inception weights .*broken\.pth: no file of weights"):
        Inception(str(tmp_path / "broken.pth"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not torch-fidelity's Inception file"):
        Inception(str(tmp_path / "other.pth"))


def test_images_too_small_for_the_classifier():
    with pytest.raises(ValueError, match="at least 8"):
        Classifier(10).eval()(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.fixture(scope="module")
def dinov2_weights(tmp_path_factory):
    """A file like the small DINOv2's, as timm saves it, with random numbers in it."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2") / "weights.pth"
    torch.save(timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=518, num_classes=0).state_dict(), path)
    return path


def test_dinov2_from_a_local_file(dinov2_weights):
    """Weights for 518 pixels, as published, serve 224; the token is the network's own, of a normalised image."""
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = DINOv2("dinov2-s", str(dinov2_weights))
    tokens = extractor(images)
    assert tokens.shape == (2, 384) and extractor.name == "dinov2-s"
    stored = torch.load(dinov2_weights, weights_only=True)
    assert torch.equal(extractor.network.state_dict()["cls_token"], stored["cls_token"])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    direct = extractor.network.forward_features((images / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(tokens, direct, atol=1e-5, rtol=1e-4)
    assert extractor(images[:, :, :64, :64]).shape == (2, 384)
    assert len(weights_key(str(dinov2_weights), "timm")) == 16 and weights_key(None, "timm") == "timm"


def test_dinov2_without_weights_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        DINOv2("dinov2-s", str(tmp_path / "absent.pth"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not those of vit_small_patch14_dinov2\.lvd142m"):
        DINOv2("dinov2-s", str(tmp_path / "other.pth"))
    with pytest.raises(FileNotFoundError, match="--dinov2 PATH"):
        DINOv2("dinov2-s")
