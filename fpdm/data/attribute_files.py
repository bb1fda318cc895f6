"""Files with the attributes of images: CelebA's list, or a CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fpdm.data.attributes import Attributes, is_number
from fpdm.data.images import ImageSet


class Line(NamedTuple):
    """where: the file and the number of the line, for messages. cells: the first is about the image."""

    where: str
    cells: list[str]


def with_attributes(images: ImageSet, path: str | Path) -> ImageSet:
    """The images, now with the attributes that a file has for them; ValueError if it is not such a file or lacks an
    image, and for images that have attributes already."""
    if images.attributes is not None:
        raise ValueError(f"attributes={path}: the images have attributes of their own, in dataset.json; leave it out")
    found = copy(images)
    found.attributes = read_attributes(path, images.keys)
    return found


def read_attributes(path: str | Path, keys: Sequence[str]) -> Attributes:
    """The attributes of the images with the names `keys` within their source, in this order.

    path: CelebA's list (a line with the number of images, one with the names of the attributes, then NAME VALUE ...,
    between spaces), or a CSV (image,NAME,... and then NAME,VALUE,...). An image's line has its name within the source
    or, if no two images have the same, its file name alone. Lines of other images are ignored, but must be whole.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"attributes {path}: not text ({error}); give CelebA's list, or a CSV") from error
    is_list = text.split("\n", 1)[0].strip().isdecimal()
    header, *lines = _celeba(path, text) if is_list else _csv(path, text)
    names = header.cells[1:]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            raise ValueError(f"{header.where}: the name {name!r} is empty or there twice; give each attribute a name")
    table: dict[str, np.ndarray] = {}
    for line in lines:
        if line.cells[0] in table:
            raise ValueError(f"{line.where}: {line.cells[0]} is there a second time; remove one of the two lines")
        table[line.cells[0]] = _vector(line, names)
    return Attributes(names, np.stack(_chosen(path, table, keys)))


def _celeba(path: str | Path, text: str) -> Iterator[Line]:
    """The names, after a cell for the image as in a CSV, then the images."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    count = int(lines[0][1])
    if len(lines) != count + 2:
        raise ValueError(
            f"attributes {path}, line 1: {count} images, but {max(len(lines) - 2, 0)} follow the names of the "
            "attributes; the file is not whole, get it again"
        )
    for number, line in lines[1:]:
        yield Line(f"attributes {path}, line {number}", ["image"] * (number == lines[1][0]) + line.split())


def _csv(path: str | Path, text: str) -> Iterator[Line]:
    """The header, then the images."""
    reader = csv.reader(io.StringIO(text), skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise ValueError(f"attributes {path}, line {reader.line_num}: {error}; correct it") from error
    number, header = rows[0] if rows else (1, [])
    if len(header) < 2:
        raise ValueError(
            f"attributes {path}, line {number}: {','.join(header)[:40]!r} is neither the number of images, as in "
            "CelebA's list, nor the header image,NAME,... of a CSV with at least one attribute"
        )
    yield Line(f"attributes {path}, line {number}", header)
    for number, cells in rows[1:]:
        yield Line(f"attributes {path}, line {number}", cells)


def _vector(line: Line, names: list[str]) -> np.ndarray:
    """The numbers of a line, float32."""
    _, *cells = line.cells
    if len(cells) != len(names):
        raise ValueError(f"{line.where}: {len(cells)} values for {len(names)} attributes; give one for each")
    for name, cell in zip(names, cells, strict=True):
        if not _is_number(cell):
            raise ValueError(f"{line.where}: {name}={cell!r} is not a finite number; correct it")
    return np.array(cells, np.float64).astype(np.float32)


def _is_number(cell: str) -> bool:
    try:
        return is_number(float(cell))
    except ValueError:
        return False


def _chosen(path: str | Path, table: dict[str, np.ndarray], keys: Sequence[str]) -> list[np.ndarray]:
    """The vectors of the images."""
    alone = {key: PurePosixPath(key).name for key in keys}
    unique = len(set(alone.values())) == len(keys)
    found = [table.get(key, table.get(alone[key]) if unique else None) for key in keys]
    missing = [key for key, vector in zip(keys, found, strict=True) if vector is None]
    if missing:
        how = "" if unique else " (file names alone are not unique in this source)"
        raise ValueError(
            f"attributes {path}: no line for {len(missing)} of {len(keys)} images, the first is {missing[0]}{how}; "
            "add the lines, or remove the images"
        )
    return found
