import pytest
import torch

from fpdm.sampling.noise import image_labels, image_noise


def test_an_image_has_its_noise_in_any_batch():
    whole = image_noise(7, range(20), 0, (4, 8, 8))
    assert torch.equal(image_noise(7, [13, 2], 0, (4, 8, 8)), whole[[13, 2]])
    assert torch.equal(image_labels(7, [13, 2], 10), image_labels(7, range(20), 10)[[13, 2]])


def test_seed_index_and_draw_all_matter():
    draws = [image_noise(s, [i], d, (64,)) for s in (0, 1) for i in (0, 1) for d in (0, 1)]
    assert len({float(d[0, 0]) for d in draws}) == 8


def test_noise_is_standard_normal_and_labels_uniform():
    noise = image_noise(0, range(500), 0, (4, 8, 8))
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert abs(float((noise[:-1] * noise[1:]).mean())) < 0.01  # neighbours are independent
    counts = torch.bincount(image_labels(0, range(5000), 10))
    assert counts.min() > 420 and counts.max() < 580


def test_the_draws_do_not_change_between_versions():
    """Seeds in recipes would lose their meaning."""
    assert image_labels(0, range(8), 10).tolist() == [1, 5, 7, 3, 5, 4, 7, 7]


def test_chosen_classes_in_turn():
    assert image_labels(0, range(5), 10, [3, 7]).tolist() == [3, 7, 3, 7, 3]
    with pytest.raises(ValueError, match=r"classes=\[10\]: labels of this model are 0\.\.9"):
        image_labels(0, range(5), 10, [3, 10])
    with pytest.raises(ValueError, match=r"classes=\[\]"):
        image_labels(0, range(5), 10, [])
