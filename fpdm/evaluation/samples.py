"""Images to score: a folder or zip of images, ADM's npz, or the digits."""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpdm.config import limits
from fpdm.damage import damaged
from fpdm.data.batches import image_batches
from fpdm.data.images import ImageSet, open_files, open_images, source_and_part
from fpdm.extent import Extent, plain, said
from fpdm.sampling.images import GRID, RECIPE

ARRAY = "arr_0"
NUMBERED = "[0-9][0-9][0-9][0-9][0-9][0-9]*.png"  # names that sample.py gives


class Samples:
    """`count` images, read in batches of uint8 (B, 3, H, W)."""

    def __init__(self, source: str, resolution: Extent | None = None):
        """resolution: crop and resize images to it, one number for squares or (height, width); without it, all images
        must have the size of the first one. The attribute is as in score files, a number or [height, width].

        ValueError or FileNotFoundError if `source` cannot be read as images.
        """
        self.source = source
        if Path(source).suffix == ".npz":
            self._array, self._images = _open_npz(Path(source)), None
            self.count, self.resolution = len(self._array), plain(self._array.shape[1:3])
            if resolution is not None and plain(resolution) != self.resolution:
                found, needed = said(self.resolution), said(resolution)
                raise ValueError(f"{source}: images of {found} pixels, {needed} are needed")
            return
        self._array, self._images = None, _open_folder(source)
        self.count = len(self._images)
        self.exact = resolution is None
        if resolution is None:
            first = self._images.load(0)
            resolution = (first.height, first.width)
        self.resolution = plain(resolution)

    def batches(self, batch_size: int, indices: range | None = None, workers: int = 0) -> Iterator[Tensor]:
        """All images in order, or those of `indices`. workers: processes that decode."""
        indices = range(self.count) if indices is None else indices
        if self._images is not None:
            images = self._images.subset(list(indices))
            for batch in image_batches(images, self.resolution, batch_size, workers, exact=self.exact):
                yield batch.pixels
            return
        for first in range(indices.start, indices.stop, batch_size):
            rows = self._array[first : min(first + batch_size, indices.stop)]
            yield torch.from_numpy(rows.copy()).permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """A hash of the resolution and of the files' names, sizes and times, not of their content."""
        whole, part = source_and_part(self.source)
        path, digest = Path(whole), hashlib.blake2b(repr((self.resolution, self.count)).encode(), digest_size=8)
        digest.update((part or "").encode())
        names = self._images.names if path.is_dir() else [str(path.resolve())] if path.exists() else [whole]
        for name in names:
            facts = Path(name).stat() if Path(name).exists() else None
            digest.update(repr((name, facts and (facts.st_size, facts.st_mtime_ns))).encode())
        return digest.hexdigest()


def load_labelled(source: str, resolution: Extent, most: int = 50_000, workers: int = 0) -> tuple[Tensor, Tensor, int]:
    """uint8 images (N, 3, H, W), labels (N,) and the number of classes of a labelled set.

    most: N is at most this, spread evenly over the set, so that memory is bounded. workers: processes that decode.
    ValueError for an npz, which has no labels.
    """
    if Path(source).suffix == ".npz":
        raise ValueError(f"reference {source}: an npz has no labels to train features=cnn on; use inception")
    images = open_images(source)
    images = images.subset([int(i) for i in np.linspace(0, len(images) - 1, min(most, len(images)))])
    batches = list(image_batches(images, resolution, 256, workers))
    pixels, labels = torch.cat([b.pixels for b in batches]), torch.cat([b.labels for b in batches])
    return pixels, labels, len(images.class_names)


def _open_npz(path: Path) -> np.ndarray:
    """arr_0 uint8 (count, H, W, 3), mapped from the file if it is not compressed (sample.py and ADM write it so)."""
    with damaged(path, f"{path}: cannot be read as npz"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        array = _mapped(path, archive, f"{ARRAY}.npy") if f"{ARRAY}.npy" in names else None
    if array is None or array.ndim != 4 or array.shape[-1] != 3 or not array.size or array.dtype != np.uint8:
        found = f"no {ARRAY}" if array is None else f"{ARRAY} {array.dtype} {array.shape}"
        raise ValueError(f"{path}: {found}; expected {ARRAY} uint8 (count, H, W, 3)")
    return array


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(name)
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        header = member.tell()
        if info.file_size != header + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its {info.file_size:,d} bytes are not those of an array {shape}")
    if info.compress_type != zipfile.ZIP_STORED:  # the whole of it is unpacked into memory
        if info.file_size > max(limits.UNPACKED * info.compress_size, 2**20):
            raise ValueError(f"{info.compress_size:,d} bytes that unpack to {info.file_size:,d}, as no images do")
        with archive.open(name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    with path.open("rb") as file:  # the data follow the member's own header, whose last two parts vary in length
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    begin = info.header_offset + 30 + int(lengths.sum()) + header
    return np.memmap(path, dtype, "r", begin, shape, order="F" if fortran else "C")


def _open_folder(source: str) -> ImageSet:
    folder = Path(source)
    if (folder / RECIPE).is_file():  # written by sample.py; the folder may also contain a trace
        numbered = sorted(folder.glob(NUMBERED))
        if not numbered:
            raise ValueError(f"{source}: a {RECIPE}, but no image beside it; give a folder with images")
        return open_files(numbered)
    return _without_grid(open_images(source))


def _without_grid(images: ImageSet) -> ImageSet:
    """Leave out the grid that a samples folder also contains."""
    kept = [i for i, name in enumerate(images.names) if Path(name).name != GRID]
    if not kept:
        raise ValueError(f"no image to score besides {GRID}; give a folder with images")
    return images.subset(kept)
