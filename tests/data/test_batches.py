import shutil
import struct
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from fpdm.data.batches import centre_crop, image_batches, to_signed, to_uint8
from fpdm.data.images import BrokenImage, open_images


def test_broken_file_is_named_or_skipped(tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "set")
    broken = tmp_path / "set" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    images = open_images(tmp_path / "set")
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"bee/3\.png: broken image .*replace or remove it$") as error:
            list(image_batches(images, 16, 5, workers))
        assert "Traceback" not in str(error.value)
    with pytest.raises(ValueError, match="--skip-broken true"):
        list(image_batches(images, 16, 5, skip_broken=False))
    batches = list(image_batches(images, 16, 5, skip_broken=True))
    assert sum(len(labels) for _, _, labels in batches) == 23
    assert 11 not in torch.cat([indices for indices, _, _ in batches])


def test_any_error_while_decoding_names_the_image(image_folder, monkeypatch):
    """Pillow's decoders raise errors of many kinds for damaged bytes. Only a lack of memory is no damage."""
    images = open_images(image_folder)
    for raised in (struct.error("unpack requires a buffer of 4 bytes"), IndexError("index out of range"), KeyError(7)):
        monkeypatch.setattr(images, "_read", Mock(side_effect=raised))
        with pytest.raises(BrokenImage, match=r"ant/0\.png: broken image"):
            images.load(0)
    monkeypatch.setattr(images, "_read", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError, match=r"ant/0\.png could not be read"):
        images.load(0)


def test_centre_crop():
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (50, 0, 150, 100))  # the centre square is red
    for size in (100, 64, 16, 128):
        cropped = np.array(centre_crop(image, size))
        assert cropped.shape == (size, size, 3)
        assert (cropped[:, 2:-2] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (15, 16), (17, 333), (1024, 700), (4, 9)])
def test_any_size_is_cropped_or_enlarged(size):
    assert centre_crop(Image.new("RGB", size, (9, 9, 9)), 16).size == (16, 16)


def test_crop_is_the_one_of_adm():
    """Its arithmetic, spelled out for one image: halve while twice too large, resize, cut the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3)).astype(np.uint8)
    halved = Image.fromarray(pixels).resize((50, 37), Image.Resampling.BOX)
    resized = np.array(halved.resize((round(50 * 32 / 37), 32), Image.Resampling.BICUBIC))
    assert resized.shape == (32, 43, 3)
    assert np.array_equal(np.array(centre_crop(Image.fromarray(pixels), 32)), resized[:, 5:37])


def test_a_rectangle_is_the_centre_of_what_covers_it():
    """As above, spelled out for 24 x 16 of 75 x 101: halved once, then covered by the height."""
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3)).astype(np.uint8)
    halved = Image.fromarray(pixels).resize((50, 37), Image.Resampling.BOX)
    resized = np.array(halved.resize((round(50 * 24 / 37), 24), Image.Resampling.BICUBIC))
    assert resized.shape == (24, 32, 3)
    assert np.array_equal(np.array(centre_crop(Image.fromarray(pixels), (24, 16))), resized[:, 8:24])
    wide = np.array(Image.fromarray(pixels).resize((64, round(75 * 64 / 101)), Image.Resampling.BICUBIC))
    assert wide.shape == (48, 64, 3)
    assert np.array_equal(np.array(centre_crop(Image.fromarray(pixels), (40, 64))), wide[4:44])


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (15, 16), (17, 333), (1024, 700), (4, 9), (24, 16)])
@pytest.mark.parametrize("resolution", [(16, 24), (24, 16), (1, 50)])
def test_any_size_becomes_any_rectangle(size, resolution):
    cropped = np.array(centre_crop(Image.new("RGB", size, (9, 9, 9)), resolution))
    assert cropped.shape == (*resolution, 3) and (cropped == 9).all()  # nothing from outside of the image


def test_crop_leaves_an_image_of_the_right_size_alone(image_folder):
    image = open_images(image_folder).load(0).crop((0, 0, 32, 32))
    assert np.array_equal(np.array(centre_crop(image, 32)), np.array(image))


def test_levels_survive_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_signed(levels)), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_workers_read_the_same(image_folder):
    images = open_images(image_folder)
    alone = torch.cat([p for _, p, _ in image_batches(images, 16, 5)])
    assert torch.equal(alone, torch.cat([p for _, p, _ in image_batches(images, 16, 5, workers=2)]))


def test_exact_size_is_enforced_on_request(image_folder):
    with pytest.raises(ValueError, match=r"ant/0\.png: 36x40 pixels, the others 16x16 \(height x width\)"):
        list(image_batches(open_images(image_folder), 16, 4, exact=True))
