import numpy as np
import pytest
import torch

from fpdm.evaluation.samples import Samples, load_labelled
from fpdm.sampling.images import png_path, save_grid, save_npz, save_png

IMAGES = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(IMAGES):
        save_png(image, png_path(tmp_path, i))
    save_grid(IMAGES, tmp_path / "grid.png")
    save_npz(tmp_path, len(IMAGES))
    return tmp_path


def test_folder_without_its_grid_and_npz_are_the_same(folder):
    for source in (folder, folder / "samples.npz"):
        samples = Samples(str(source))
        assert (samples.count, samples.resolution) == (7, 8)
        assert torch.equal(torch.cat(list(samples.batches(3))), IMAGES)


def test_images_of_mixed_sizes_are_refused(folder):
    save_png(torch.zeros(3, 9, 8, dtype=torch.uint8), png_path(folder, 3))
    with pytest.raises(ValueError, match=r"000003\.png: 9x8 pixels, the others 8x8"):
        list(Samples(str(folder)).batches(2))


def test_reference_is_cropped_to_the_samples(image_folder):
    batch = next(Samples(str(image_folder), 16).batches(5))
    assert batch.shape == (5, 3, 16, 16)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 0, 0, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_wrongly_typed_arrays_are_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match=r"a\.npz: .*expected arr_0 uint8"):
        Samples(str(tmp_path / "a.npz"))


def test_what_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read as npz"):
        Samples(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="no arr_0"):
        Samples(str(tmp_path / "b.npz"))


def test_resolution_of_an_npz_is_fixed(folder):
    with pytest.raises(ValueError, match="images of 8 pixels, 16 are needed"):
        Samples(str(folder / "samples.npz"), 16)


def test_images_need_not_be_square(tmp_path):
    images = torch.randint(0, 256, (5, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(images):
        save_png(image, png_path(tmp_path, i))
    save_npz(tmp_path, len(images))
    for source in (tmp_path, tmp_path / "samples.npz"):
        samples = Samples(str(source))
        assert samples.resolution == [8, 12]  # height, width
        assert torch.equal(torch.cat(list(samples.batches(2))), images)
    assert Samples(str(tmp_path / "samples.npz"), (8, 12)).count == 5
    with pytest.raises(ValueError, match="images of 8x12 pixels, 8 are needed"):
        Samples(str(tmp_path / "samples.npz"), 8)
    assert Samples(str(tmp_path), (4, 6)).fingerprint() != Samples(str(tmp_path), (6, 4)).fingerprint()


def test_labelled_reference(image_folder):
    images, labels, classes = load_labelled(str(image_folder), 16)
    assert images.shape == (24, 3, 16, 16) and classes == 3 and labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(load_labelled(str(image_folder), 16, most=6)[0]) == 6
    with pytest.raises(ValueError, match="an npz has no labels"):
        load_labelled("x.npz", 16)


def test_a_trace_beside_the_images_is_none_of_them(folder):
    (folder / "samples.json").write_text("{}")
    (folder / "trace").mkdir()
    save_grid(IMAGES, folder / "trace" / "filmstrip.png")
    samples = Samples(str(folder))
    assert samples.count == 7 and torch.equal(torch.cat(list(samples.batches(3))), IMAGES)
    for path in folder.glob("0*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"a samples\.json, but no image beside it"):
        Samples(str(folder))
