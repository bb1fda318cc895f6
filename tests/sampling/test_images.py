import numpy as np
import pytest
import torch
from PIL import Image

from fpdm.sampling.images import (
    is_complete,
    load_pngs,
    open_folder,
    png_path,
    save_grid,
    save_npz,
    save_png,
)

IMAGES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fill(folder):
    for i, image in enumerate(IMAGES):
        save_png(image, png_path(folder, i))


def test_png_and_npz_hold_the_pixels(tmp_path):
    fill(tmp_path)
    save_npz(tmp_path, len(IMAGES))
    expected = IMAGES.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(load_pngs(tmp_path, range(5)), expected)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], expected)


def test_half_written_image_counts_as_missing(tmp_path):
    fill(tmp_path)
    path = png_path(tmp_path, 2)
    assert is_complete(path)
    path.write_bytes(path.read_bytes()[:80])
    assert not is_complete(path)
    assert not is_complete(tmp_path / "000099.png")


def test_grid_is_near_square(tmp_path):
    save_grid(IMAGES, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (2 * 10 + 2, 3 * 10 + 2)


def test_folder_takes_one_recipe(tmp_path):
    folder = tmp_path / "samples"
    open_folder(folder, {"seed": 0, "num_samples": 4})
    open_folder(folder, {"seed": 0, "num_samples": 9})  # extending it is fine
    with pytest.raises(ValueError, match=r"\(seed was 0, is 1\)"):
        open_folder(folder, {"seed": 1, "num_samples": 9, "plan": [[999, -1, 3]]})
    with pytest.raises(ValueError, match="already has 9 images of this recipe"):
        open_folder(folder, {"seed": 0, "num_samples": 4})


@pytest.mark.parametrize("flat", [True, False])
def test_folder_of_other_images_is_refused(tmp_path, flat):
    (tmp_path / "class").mkdir()
    fill(tmp_path if flat else tmp_path / "class")
    with pytest.raises(ValueError, match=r"holds files but no samples\.json"):
        open_folder(tmp_path, {"seed": 0})


def test_a_kill_before_the_recipe_leaves_a_folder_that_is_used_again(tmp_path):
    (tmp_path / ".samples.json.partial").write_text('{"se')
    open_folder(tmp_path, {"seed": 0, "num_samples": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
