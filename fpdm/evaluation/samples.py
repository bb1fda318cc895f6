"""Images to score: a folder or zip of images, ADM's npz, or the digits."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpdm.data.batches import image_batches
from fpdm.data.images import ImageSet, open_images
from fpdm.sampling.images import GRID


class Samples:
    """`count` images, read in batches of uint8 (B, 3, R, R)."""

    def __init__(self, source: str, resolution: int | None = None):
        """resolution: crop and resize images to it; without it they must all have the size of the first."""
        self.source = source
        if Path(source).suffix == ".npz":
            self._array, self._images = _load_npz(Path(source)), None
            self.count, self.resolution = len(self._array), self._array.shape[1]
            if resolution is not None and resolution != self.resolution:
                raise ValueError(f"{source}: images of {self.resolution} pixels, {resolution} are needed")
            return
        self._array, self._images = None, _without_grid(open_images(source))
        self.count = len(self._images)
        self.exact = resolution is None
        self.resolution = resolution or self._images.load(0).width

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        if self._images is not None:
            for batch in image_batches(self._images, self.resolution, batch_size, exact=self.exact):
                yield batch.pixels
            return
        for first in range(0, self.count, batch_size):
            yield torch.from_numpy(self._array[first : first + batch_size].copy()).permute(0, 3, 1, 2)


def load_labelled(source: str, resolution: int, most: int = 50_000) -> tuple[Tensor, Tensor, int]:
    """uint8 images (N, 3, R, R), labels (N,) and the number of classes of a labelled set.

    At most `most` images, spread evenly over the set, so that memory stays bounded.
    """
    if Path(source).suffix == ".npz":
        raise ValueError(f"reference {source}: an npz has no labels to train features=cnn on; use inception")
    images = open_images(source)
    images = images.subset([int(i) for i in np.linspace(0, len(images) - 1, min(most, len(images)))])
    batches = list(image_batches(images, resolution, 256))
    pixels, labels = torch.cat([b.pixels for b in batches]), torch.cat([b.labels for b in batches])
    return pixels, labels, len(images.class_names)


def _load_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path) as file:
            array = dict(file).get("arr_0")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as npz ({error})") from error
    if array is None or array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        found = "no arr_0" if array is None else f"arr_0 {array.dtype} {array.shape}"
        raise ValueError(f"{path}: {found}; expected arr_0 uint8 (count, R, R, 3)")
    return array


def _without_grid(images: ImageSet) -> ImageSet:
    """A samples folder also holds a grid of its images, which is none of them."""
    kept = [i for i, name in enumerate(images.names) if Path(name).name != GRID]
    if not kept:
        raise ValueError("no image to score besides the grid")
    return images.subset(kept)
