import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from fpdm.data.images import open_images, open_parts


def pixels(images):
    return [np.array(images.load(i)) for i in range(len(images))]


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_class_folders(image_folder):
    images = open_images(image_folder)
    assert images.class_names == ["ant", "bee", "cow"]
    assert images.labels == [0] * 8 + [1] * 8 + [2] * 8
    for image, label in zip(pixels(images), images.labels, strict=True):
        assert image.mean((0, 1)).argmax() == label  # each class has its colour


@pytest.mark.parametrize("prefix", ["", "data/train/"])
def test_zip_of_class_folders_is_the_folder(image_folder, tmp_path, prefix):
    folder, archive = open_images(image_folder), open_images(zipped(image_folder, tmp_path / "a.zip", prefix))
    assert archive.labels == folder.labels and archive.class_names == folder.class_names
    assert all(np.array_equal(a, b) for a, b in zip(pixels(folder), pixels(archive), strict=True))


def test_flat_folder_is_one_class(image_folder):
    images = open_images(image_folder / "bee")
    assert len(images) == 8 and set(images.labels) == {0} and len(images.class_names) == 1


def test_edm_zip_takes_its_labels(image_folder, tmp_path):
    path = tmp_path / "edm.zip"
    labels = {f"00000/img{i:08d}.png": i % 2 for i in range(4)}
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(labels):
            archive.write(image_folder / "ant" / f"{i}.png", name)
        archive.writestr("dataset.json", json.dumps({"labels": list(labels.items())}))
    images = open_images(path)
    assert images.labels == [0, 1, 0, 1] and images.class_names == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([["a.png", -1]], r"found \[-1\]"),
        ([["a.png", [0, 1]]], r"found \[\[0, 1\]\]"),
        ([], "classes 0, 1"),
        ([["b.png", 0]], r"1 images that are not in the zip, the first is b\.png"),
        (None, None),
    ],
)
def test_edm_labels_are_checked(image_folder, tmp_path, labels, says):
    path = tmp_path / "edm.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(image_folder / "ant" / "0.png", "a.png")
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    if says is None:
        assert open_images(path).labels == [0]
        return
    with pytest.raises(ValueError, match=says):
        open_images(path)


def test_zip_with_one_class_keeps_its_name(image_folder, tmp_path):
    path = tmp_path / "one.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(image_folder / "ant" / "0.png", "train/ant/0.png")
    assert open_images(path).class_names == ["ant"]


def test_image_sets_go_to_worker_processes(image_folder, tmp_path):
    for images in (
        open_images("digits"),
        open_images(image_folder),
        open_images(zipped(image_folder, tmp_path / "a.zip")),
    ):
        images.load(3)
        twin = pickle.loads(pickle.dumps(images.subset([3, 5])))
        assert np.array_equal(np.array(twin.load(0)), np.array(images.load(3)))


def test_digits():
    images = open_images("digits")
    assert len(images) == 1797 and images.class_names == [str(c) for c in range(10)]
    assert images.load(0).size == (8, 8)
    assert np.array(images.load(0)).max() == 239  # 15 of 16 grey levels


def test_missing_empty_and_mixed_sources(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no image in it"):
        open_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a zip"):
        open_images(tmp_path / "notes.txt")
    shutil.copytree(image_folder / "ant", tmp_path / "ant")
    shutil.copy(image_folder / "ant" / "0.png", tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"both images \(stray\.png\) and class folders \(ant\)"):
        open_images(tmp_path)


LIGHT = {"1": 255}  # one bit has no grey


def ramp(mode, tmp_path):
    """The file of a 64x32 image of that kind, whose left half is black and whose right half is light."""
    grey = np.zeros((32, 64), np.uint8)
    grey[:, 32:] = LIGHT.get(mode, 200)
    if mode == "16-bit":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(grey).convert("RGB").quantize(4)
    elif mode == "RGBA":
        image = Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.new("L", (64, 32), 255)])
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "16-bit", "CMYK"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    path = ramp(mode, tmp_path)
    image = open_images(tmp_path).load(0)
    assert image.mode == "RGB" and image.size == (64, 32), path
    values = np.array(image).astype(int)
    assert np.abs(values[:, :24]).max() <= 8 and np.abs(values[:, 40:] - LIGHT.get(mode, 200)).max() <= 8


def test_exif_rotation_is_not_applied(tmp_path):
    """As in ADM's data pipeline: the pixels count as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_images(tmp_path).load(0).size == (64, 32)


def test_suffixes_in_capitals_and_nested_class_folders(tmp_path):
    (tmp_path / "cat" / "more").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "more" / "1.JPEG")
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "2.webp")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    images = open_images(tmp_path)
    assert len(images) == 2 and images.class_names == ["cat"]


def test_parts_have_no_image_in_common(tmp_path):
    whole, (training, held_out) = open_images("digits"), open_parts("digits")
    assert (len(training), len(held_out)) == (1632, 165) and sorted(training.keys + held_out.keys) == whole.keys
    assert training.keys == open_images("digits@training").keys == open_parts("digits@training")[0].keys
    with pytest.raises(ValueError, match="held-out images are not trained on; use digits@training"):
        open_parts("digits@held-out")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="none of the 1 images is in this part; use more images"):
        open_parts(tmp_path)
