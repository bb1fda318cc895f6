import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from fpdm.data.images import is_held_out, open_images, open_parts, source_and_part


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
        ([["a.png", [0, "1"]]], r"dataset\.json: the label of a\.png is \[0, '1'\], the first one has 2 numbers"),
        ([["a.png", []]], r"the label of a\.png is \[\]"),
        ([["a.png", [0, 1]], ["a.png", [1]]], r"the label of a\.png is \[1\], the first one has 2 numbers; give each"),
        ([["a.png", [0, 1]], ["b.png", 1]], r"1 images that are not in the zip, the first is b\.png"),
        ([["a.png", [0, 1e39]]], r"the label of a\.png is \[0, 1e\+39\]"),
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
    with pytest.raises(ValueError, match=says) as error:
        open_images(path)
    assert f"{path}: dataset.json" in str(error.value)


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


def test_which_images_are_held_out_is_recorded():
    """By another program: printf %s cat/0001.png | sha256sum. A change would mix the parts of sources in use."""
    digests = {"cat/0001.png": 0xD8EF4D6D, "ant/4.png": 0x15CD6927, "ant/6.png": 0x0CE2E71E}
    assert {name: is_held_out(name) for name in digests} == {
        name: digest / 2**32 < 0.1 for name, digest in digests.items()
    }
    kept = open_images("digits@held-out").keys
    assert len(kept) == 165 and kept[:4] == ["digits/0034", "digits/0059", "digits/0064", "digits/0075"]


def test_parts_are_disjoint_and_complete():
    whole, training, held_out = (open_images(f"digits{part}") for part in ("", "@training", "@held-out"))
    assert set(training.keys).isdisjoint(held_out.keys)
    assert sorted(training.keys + held_out.keys) == sorted(whole.keys)
    assert training.class_names == held_out.class_names == whole.class_names
    labels = dict(zip(whole.keys, whole.labels, strict=True))
    assert held_out.labels == [labels[key] for key in held_out.keys] and set(held_out.labels) == set(range(10))
    assert not any(training.held_out()) and all(held_out.held_out())


def test_parts_do_not_depend_on_where_the_images_lie(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "moved" / "elsewhere")
    sources = [image_folder, tmp_path / "moved" / "elsewhere", zipped(image_folder, tmp_path / "a.zip"),
               zipped(image_folder, tmp_path / "b.zip", "data/train/")]  # fmt: skip
    for source in sources:
        held_out, training = (open_images(f"{source}@{part}") for part in ("held-out", "training"))
        assert held_out.keys == ["ant/4.png", "ant/6.png"] and len(training) == 22
        whole = pixels(open_images(source))
        assert all(np.array_equal(a, b) for a, b in zip(pixels(held_out), [whole[4], whole[6]], strict=True))


def test_parts_of_an_edm_zip(image_folder, tmp_path):
    """Names count from the folder of dataset.json."""
    names = [f"00000/img{i:08d}.png" for i in range(60)]
    for path, prefix in ((tmp_path / "a.zip", ""), (tmp_path / "b.zip", "set/")):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(image_folder / "ant" / "0.png", prefix + name)
            archive.writestr(f"{prefix}dataset.json", json.dumps({"labels": [[name, 0] for name in names]}))
        images = open_images(path)
        assert images.keys == names
        assert 0 < sum(images.held_out()) < 30 and len(open_images(f"{path}@held-out")) == sum(images.held_out())


def test_sources_with_an_at_sign(image_folder, tmp_path):
    assert source_and_part("cifar10.zip@training") == ("cifar10.zip", "training")
    assert source_and_part("digits") == ("digits", None)
    assert source_and_part("user@host/images") == ("user@host/images", None)
    folder = tmp_path / "images@held-out"  # a folder of this very name is a whole source
    shutil.copytree(image_folder, folder)
    assert len(open_images(folder)) == 24 and len(open_images(f"{folder}@held-out")) == 2
    with pytest.raises(ValueError, match=r"digits has no part 'test'; use @training or @held-out"):
        open_images("digits@test")
    shutil.copytree(image_folder / "cow", tmp_path / "few" / "cow")
    with pytest.raises(ValueError, match=r"none of the 8 images is in this part; use more images"):
        open_images(f"{tmp_path / 'few'}@held-out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "absent@training")


def test_parts_have_no_image_in_common(tmp_path):
    whole, (training, held_out) = open_images("digits"), open_parts("digits")
    assert (len(training), len(held_out)) == (1632, 165) and sorted(training.keys + held_out.keys) == whole.keys
    assert training.keys == open_images("digits@training").keys == open_parts("digits@training")[0].keys
    with pytest.raises(ValueError, match="held-out images are not trained on; use digits@training"):
        open_parts("digits@held-out")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="none of the 1 images is in this part; use more images"):
        open_parts(tmp_path)
