"""Attributes of images: files against a table written by hand, and the store."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fpdm.config import EncodeConfig
from fpdm.data.attribute_files import read_attributes, with_attributes
from fpdm.data.attributes import KEPT, Attributes, evenly
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import MANIFEST, LatentStore

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CELEBA = """3
Smiling Male 5_o_Clock_Shadow
000001.jpg -1  1 -1
000002.jpg  1 -1 -1
000003.jpg  1  1  1
"""
TABLE = """image,year,tilt
b/2.png,2009,-.5

a/1.png, 1.5e3 ,0
"d/4.png",0,1
c/3.png,1,2.25
"""


def written(folder, text) -> Path:
    path = folder / "attributes.txt"
    path.write_text(text)
    return path


def test_celebas_list(tmp_path):
    found = read_attributes(written(tmp_path, CELEBA), ["000003.jpg", "000001.jpg"])
    assert found.names == ["Smiling", "Male", "5_o_Clock_Shadow"] and found.vectors.dtype == np.float32
    assert found.vectors.tolist() == [[1, 1, 1], [-1, 1, -1]]
    deeper = read_attributes(written(tmp_path, CELEBA), ["img_align/000002.jpg", "img_align/000003.jpg"])
    assert deeper.vectors.tolist() == [[1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize("change", [str, lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_a_csv(tmp_path, change):
    path = tmp_path / "a.csv"
    path.write_bytes(change(TABLE).encode())
    found = read_attributes(path, ["a/1.png", "b/2.png", "c/3.png"])
    assert found.names == ["year", "tilt"]
    assert found.vectors.tolist() == [[1500, 0], [2009, -0.5], [1, 2.25]]


def test_a_name_within_the_source_goes_before_a_file_name(tmp_path):
    text = "image,n\n1.png,1\na/1.png,2\nb/2.png,3\n"
    assert read_attributes(written(tmp_path, text), ["a/1.png", "b/2.png"]).vectors.tolist() == [[2], [3]]


BAD = {
    "no image": (CELEBA.replace("000002", "000009"), r"no line for 1 of 2 images, the first is 000002\.jpg; add"),
    "not whole": (CELEBA[:-30], r"attributes .*attributes\.txt, line 1: 3 images, but 2 follow .* get it again"),
    "no names": ("3\n", "line 1: 3 images, but 0 follow the names"),
    "twice": (CELEBA.replace("000003", "000002"), r"line 5: 000002\.jpg is there a second time; remove one"),
    "few": (CELEBA.replace("-1  1 -1", "-1 1"), "line 3: 2 values for 3 attributes; give one for each"),
    "word": (CELEBA.replace("1  1  1", "1 yes 1"), "line 5: Male='yes' is not a finite number; correct it"),
    "nan": (CELEBA.replace("1  1  1", "1 1 nan"), "line 5: 5_o_Clock_Shadow='nan' is not a finite number"),
    "large": ("image,n\n000001.jpg,1\n000002.jpg,1e39\n", "line 3: n='1e39' is not a finite number"),
    "empty": ("image,n,m\n000001.jpg,1,\n000002.jpg,1,1\n", "line 2: m='' is not a finite number"),
    "same names": (CELEBA.replace("Male", "Smiling"), "line 2: the name 'Smiling' is empty or there twice"),
    "no name": ("image,n,\n", "line 1: the name '' is empty or there twice; give each attribute a name"),
    "no columns": ("image\n000001.jpg\n", "line 1: 'image' is neither the number of images, .* nor the header image,"),
    "long": ("image,n\n000001.jpg," + "1" * 140_000, "line 2: field larger than field limit .* correct it"),
    "spaces": ("Smiling Male\n000001.jpg 1 1\n", "line 1: 'Smiling Male' is neither"),
    "nothing": ("", "line 1: '' is neither"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_mistakes_in_a_file_are_named(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_attributes(written(tmp_path, text), ["000001.jpg", "000002.jpg"])


def test_a_file_name_that_two_images_have_is_no_name(tmp_path):
    with pytest.raises(ValueError, match=r"first is a/1\.png \(file names alone are not unique in this source\)"):
        read_attributes(written(tmp_path, "image,n\n1.png,1\n"), ["a/1.png", "b/1.png"])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes: not text .* give CelebA's list, or a CSV"):
        read_attributes(tmp_path / "bytes", ["a"])


def test_vectors_of_edms_table_are_attributes(image_folder, tmp_path):
    path = tmp_path / "edm.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.write(image_folder / "ant" / f"{i}.png", f"x/{i}.png")
        labels = [["1.png", [0.5, -2]], ["0.png", [1, 0.0]], ["2.png", [3, 4]]]
        archive.writestr("x/dataset.json", json.dumps({"labels": labels}))
    images = open_images(path)
    assert images.attributes.names == ["0", "1"] and images.class_names == ["images"] and images.labels == [0] * 3
    assert images.keys == ["0.png", "1.png", "2.png"]
    assert images.attributes.vectors.tolist() == [[1, 0], [0.5, -2], [3, 4]]
    assert images.subset([2, 0]).attributes.vectors.tolist() == [[3, 4], [1, 0]]
    with pytest.raises(ValueError, match=r"have attributes of their own, in dataset\.json; leave it out"):
        with_attributes(images, written(tmp_path, CELEBA))


@pytest.fixture(scope="module")
def table(image_folder, tmp_path_factory) -> Path:
    """A CSV with two attributes of the images of `image_folder`, the second one constant, in another order."""
    rng = np.random.default_rng(2)
    rows = [f"{name}/{i}.png,{rng.normal(2000, 10)},7" for name in ("ant", "bee", "cow") for i in range(8)]
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(["image,year,same", *rng.permutation(rows), "dog/1.png,3,3"]))
    return path


def expected(table, keys) -> np.ndarray:
    rows = dict(line.split(",", 1) for line in table.read_text().splitlines())
    return np.array([[float(cell) for cell in rows[key].split(",")] for key in keys], np.float32)


@pytest.fixture(scope="module")
def store(image_folder, table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attributes") / "store"
    images = with_attributes(open_images(image_folder), table)
    encode(images, open_codec("pixels"), folder, EncodeConfig(resolution=8, shard=5, batch_size=3), CPU)
    return folder


def test_a_store_keeps_them(store, image_folder, table, pixel_store):
    opened, plain = LatentStore(store), LatentStore(pixel_store)
    vectors = expected(table, open_images(image_folder).keys)
    indices = np.array([23, 4, 4, 11])
    batch, without = opened.read(indices, np.array([True, False, True, False])), plain.read(indices)
    assert np.array_equal(batch.attributes.numpy(), vectors[indices]) and batch.attributes.is_contiguous()
    assert torch.equal(batch.labels, without.labels) and batch.condition("labels") is batch.labels
    assert torch.equal(batch.records[1], without.records[1]) and without.attributes is None
    assert batch.to(CPU).condition("attributes").equal(batch.attributes)
    found = opened.manifest
    assert found.attribute_names == ["year", "same"] and found.format == 2
    assert found.attribute_mean == pytest.approx(vectors.astype(np.float64).mean(0), rel=1e-12)
    assert found.attribute_std == pytest.approx([vectors[:, 0].astype(np.float64).std(), 1], rel=1e-12)
    assert np.array_equal(opened.kept_attributes.vectors, vectors) and plain.kept_attributes is None


def test_a_store_without_them_is_as_it_was(pixel_store, tmp_path):
    """The same records, and a manifest of before attributes opens."""
    assert LatentStore(pixel_store).manifest.record.itemsize == 8 + 2 * 2 * 3 * 64
    facts = json.loads((pixel_store / MANIFEST).read_text())
    for name in ("attributes_hash", "attribute_names", "attribute_mean", "attribute_std"):
        assert not facts.pop(name)
    for path in pixel_store.glob("*.bin"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / MANIFEST).write_text(json.dumps(facts))
    assert LatentStore(tmp_path).manifest == LatentStore(pixel_store).manifest


def test_other_attributes_are_another_store(store, image_folder, table, tmp_path):
    config, codec = EncodeConfig(resolution=8, shard=5, batch_size=3), open_codec("pixels")
    for text in (table.read_text().replace("ant/3.png,2", "ant/3.png,3").replace("ant/3.png,1", "ant/3.png,3"),
                 table.read_text().replace("year", "age")):  # fmt: skip
        images = with_attributes(open_images(image_folder), written(tmp_path, text))
        with pytest.raises(
            ValueError, match=r"other settings: attributes \(hash\) was [0-9a-f]+, is [0-9a-f]+; choose"
        ):
            encode(images, codec, store, config, CPU)
    with pytest.raises(ValueError, match=r"attributes \(hash\) was [0-9a-f]+, is ; choose another --out"):
        encode(open_images(image_folder), codec, store, config, CPU)


def test_two_processes_write_the_same_bytes(store, image_folder, table, tmp_path):
    out = tmp_path / "store"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               ROOT / "scripts/encode_latents.py", "--images", image_folder, "--vae", "pixels", "--resolution", 8,
               "--shard", 5, "--batch-size", 7, "--attributes", table, "--out", out]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "24 latents (3, 8, 8), 3 class(es), 2 attribute(s), 2 flip(s)" in done.stdout
    assert done.stdout.count("the same in all images: same; nothing can be learned from that") == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in store.iterdir()}


def test_an_attribute_that_is_not_finite_is_damage(store, tmp_path):
    for path in store.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = np.memmap(tmp_path / "shard-00001.bin", LatentStore(store).manifest.record, "r+")
    shard["attributes"][2, 1] = np.nan
    shard.flush()
    with pytest.raises(ValueError, match="record 7 is not finite; the store is damaged"):
        LatentStore(tmp_path).read(np.array([3, 7]))


def test_so_many_are_kept_from_all_over_the_store():
    chosen = evenly(202_599, KEPT)
    assert len(chosen) == KEPT and (chosen[0], chosen[-1]) == (0, 202_598) and set(np.diff(chosen)) == {20, 21}
    assert evenly(3, KEPT).tolist() == [0, 1, 2]
    facts = Attributes(["a"], np.full((3, 1), 0.1, np.float32)).facts()
    assert facts["attribute_std"] == [1.0]  # 0.1 has no exact mean: its deviation would be 1e-9, not 0
