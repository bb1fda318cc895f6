"""Image sources: class folders, flat folders, zip files and scikit-learn's digits; whole, or one of their two parts."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from fpdm.config import limits
from fpdm.damage import check_memory, damaged
from fpdm.data.attributes import Attributes, of_vectors
from fpdm.data.readers import ArrayReader, FileReader, ZipReader, member
from fpdm.records import fits, shown

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
DIGITS = "digits"
HELD_OUT_SHARE = 0.1
TRAINING, HELD_OUT = "training", "held-out"  # the parts of a source: SOURCE@training, SOURCE@held-out


class BrokenImage(ValueError):
    """A file that is listed as an image but cannot be decoded."""


class ImageSet:
    """A list of labelled images, decoded one at a time.

    names: one per image, for messages; keys: names within the source, the same wherever it lies. labels: the class of
    each, an index into class_names (one class for unconditional data). read: record number -> PIL image, picklable for
    worker processes; records: the record number of each image (all in order, if not given). attributes: of each image,
    if they are known.
    """

    def __init__(
        self,
        names: list[str],
        labels: list[int],
        class_names: list[str],
        read: Callable[[int], Image.Image],
        records: Sequence[int] | None = None,
        keys: list[str] | None = None,
        attributes: Attributes | None = None,
    ):
        self.names, self.labels, self.class_names = names, labels, class_names
        self.keys = names if keys is None else keys
        self.attributes = attributes
        self._read = read
        self._records = range(len(names)) if records is None else records

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: list[int]) -> "ImageSet":
        """The images `indices`, in that order."""
        names, labels, records, keys = (
            [of_all[i] for i in indices] for of_all in (self.names, self.labels, self._records, self.keys)
        )
        attributes = self.attributes and self.attributes.subset(indices)
        return ImageSet(names, labels, self.class_names, self._read, records, keys, attributes)

    def held_out(self) -> list[bool]:
        """Which images are held out: about a tenth, chosen by a hash of their names within the source."""
        return [is_held_out(key) for key in self.keys]

    def load(self, i: int) -> Image.Image:
        """Image i as RGB; BrokenImage naming the file if it cannot be decoded."""
        try:
            return _eight_bit(self._read(self._records[i])).convert("RGB")
        except Exception as error:  # damaged bytes can make Pillow raise anything
            check_memory(self.names[i], error)
            raise BrokenImage(f"{self.names[i]}: broken image ({error}); replace or remove it") from error


def open_images(source: str | Path) -> ImageSet:
    """A folder or zip of class folders or of images, or `digits`; or a part of one, SOURCE@training or SOURCE@held-out.

    Classes are the sub-folders in sorted order; a flat folder is one class. A zip may also hold
    EDM's dataset.json, whose labels are then used: classes, or vectors of attributes. The parts have no image in
    common. An image belongs to the same part on every machine, in a folder and in a zip (`is_held_out`).
    """
    whole, part = source_and_part(source)
    if part is not None:
        images = open_images(whole)
        chosen = [i for i, held_out in enumerate(images.held_out()) if held_out == (part == HELD_OUT)]
        if not chosen:
            raise ValueError(
                f"images {source}: none of the {len(images)} images is in this part; use more images, or the whole "
                "source"
            )
        return images.subset(chosen)
    if str(source) == DIGITS:
        return _digits()
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return _zip(path)
    kind = "is neither a folder nor a zip file" if path.exists() else "does not exist"
    raise FileNotFoundError(f"images {source} {kind}; give a folder, a zip file or '{DIGITS}'")


def open_parts(source: str | Path) -> tuple[ImageSet, ImageSet]:
    """The training part and the held-out part of a source: the same for SOURCE and SOURCE@training.

    ValueError for SOURCE@held-out, and for a source without images in one of the parts.
    """
    whole, part = source_and_part(source)
    if part == HELD_OUT:
        raise ValueError(f"images {source}: held-out images are not trained on; use {whole}@{TRAINING}")
    return open_images(f"{whole}@{TRAINING}"), open_images(f"{whole}@{HELD_OUT}")


def source_and_part(source: str | Path) -> tuple[str, str | None]:
    """`cifar10.zip@training` -> (`cifar10.zip`, `training`); without a part, or if a file has this very name, None.

    ValueError for another word after the last @ of a source that exists without it.
    """
    whole, mark, part = str(source).rpartition("@")
    if not mark or Path(source).exists():
        return str(source), None
    if part in (TRAINING, HELD_OUT):
        return whole, part
    if whole == DIGITS or Path(whole).exists():
        raise ValueError(f"images {source}: {whole} has no part {part!r}; use @{TRAINING} or @{HELD_OUT}")
    return str(source), None


def is_held_out(key: str) -> bool:
    """Whether the image of this name within its source, such as `cat/0001.png`, is held out.

    True if the first 8 bytes of the name's SHA-256, as a big-endian fraction of 2^64, are below HELD_OUT_SHARE.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < HELD_OUT_SHARE * 2**64


def open_files(paths: Sequence[Path]) -> ImageSet:
    """These files, in this order, as images of one class."""
    names = [str(path) for path in paths]
    return ImageSet(names, [0] * len(names), ["images"], FileReader(names))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's conversion would clip; other images are unchanged."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    levels = np.asarray(image).astype(np.int64)
    return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))


def _digits() -> ImageSet:
    """1,797 handwritten digits, 8x8 grey, from scikit-learn: real data without a download."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    names = [f"{DIGITS}/{i:04d}" for i in range(len(pixels))]
    return ImageSet(names, data.target.tolist(), [str(c) for c in range(10)], ArrayReader(pixels))


def _folder(root: Path) -> ImageSet:
    names = [
        Path(folder, file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
    ]
    names, labels, class_names = _classify(names, str(root))
    paths = [str(root / name) for name in names]
    return ImageSet(paths, labels, class_names, FileReader(paths), keys=names)


def _zip(path: Path) -> ImageSet:
    with _opened(path) as archive:
        listed = archive.namelist()
        table = next((name for name in listed if PurePosixPath(name).name == "dataset.json"), None)
        edm = _table(path, archive, table) if table else None
    if table:
        names, labels, class_names, attributes = _edm_labels(path, listed, table, edm)
        keys = [name.removeprefix(f"{PurePosixPath(table).parent}/") for name in names]
    else:
        # The parent of all class folders, such as data/train/ for data/train/cat/1.png.
        above = [str(PurePosixPath(name).parent.parent) for name in listed if _is_image(name)]
        prefix = os.path.commonpath(above or [""]).strip(".")
        prefix = f"{prefix}/" if prefix else ""
        attributes = None
        keys, labels, class_names = _classify([name.removeprefix(prefix) for name in listed], str(path))
        names = [prefix + name for name in keys]
    names, reader = [f"{path}:{name}" for name in names], ZipReader(path, names)
    return ImageSet(names, labels, class_names, reader, keys=keys, attributes=attributes)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with damaged(path, f"images {path}: not a whole zip file", "copy it again"):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def _table(path: Path, archive: zipfile.ZipFile, name: str) -> dict:
    """EDM's dataset.json; ValueError for one that is damaged or enormous."""
    with damaged(path, f"{path}: {name} is damaged", "replace it"):
        return json.loads(member(archive, name))


def _edm_labels(
    path: Path, listed: list[str], table: str, edm: dict
) -> tuple[list[str], list[int], list[str], Attributes | None]:
    """EDM's dataset.json: {"labels": [[name, class], ...]}, with vectors of numbers instead of classes, or null for
    unconditional data."""
    root, source = PurePosixPath(table).parent, f"{path}: {table}"
    labels = edm.get("labels") if isinstance(edm, dict) else None
    if labels is None:
        names = sorted(name for name in listed if _is_image(name))
        return names, [0] * len(names), ["images"], None
    known = set(listed)
    if not fits(labels, list[tuple[str, Any]]):
        raise ValueError(f"{source}: labels must be [name, class] pairs, classes 0, 1, ...; found {shown(labels)}")
    pairs = sorted((str(root / name), label) for name, label in labels)
    vectors = pairs and isinstance(pairs[0][1], list)
    wrong = [label for _, label in pairs if not vectors and not (fits(label, int) and 0 <= label < limits.CLASSES)]
    if not pairs or wrong:
        raise ValueError(
            f"{source}: labels must be [name, class] pairs, classes 0, 1, ...; found {wrong[:1] or labels}"
        )
    missing = [name for name, _ in pairs if name not in known]
    if missing:
        raise ValueError(f"{source} names {len(missing)} images that are not in the zip, the first is {missing[0]}")
    names, labels = map(list, zip(*pairs, strict=True))
    if vectors:
        return names, [0] * len(names), ["images"], of_vectors(source, pairs)
    return names, labels, [str(c) for c in range(max(labels) + 1)], None


def _classify(names: list[str], source: str) -> tuple[list[str], list[int], list[str]]:
    """Relative names -> sorted image names, labels and class names."""
    names = sorted(name for name in names if _is_image(name))
    if not names:
        raise ValueError(f"images {source}: no image in it (looked for {', '.join(sorted(EXTENSIONS))})")
    tops = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
    if None in tops and any(tops):
        raise ValueError(
            f"images {source}: holds both images ({names[tops.index(None)]}) and class folders "
            f"({next(filter(None, tops))}); use one of the two layouts"
        )
    if None in tops:
        return names, [0] * len(names), ["images"]
    class_names = sorted(set(tops))
    index = {name: i for i, name in enumerate(class_names)}
    return names, [index[top] for top in tops], class_names


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden
