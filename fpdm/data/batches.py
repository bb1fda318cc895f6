"""From images to batches of pixels: crop, decode in worker processes, leave out what is broken.

B batch, R resolution.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fpdm.data.images import BrokenImage, ImageSet


def centre_crop(image: Image.Image, resolution: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, resize the short side, cut the centre."""
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


class ImageTensors(Dataset):
    """Images as (index, uint8 (3, R, R), label), or as the BrokenImage that says why not.

    exact: an image of another size than R x R is broken too, instead of cropped and resized.
    """

    def __init__(self, images: ImageSet, resolution: int, exact: bool = False):
        self.images, self.resolution, self.exact = images, resolution, exact

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor, int] | BrokenImage:
        try:
            image = self.images.load(i)
        except BrokenImage as error:  # handed on: raised in a worker process it would arrive as a traceback's text
            return BrokenImage(str(error))
        size = f"{image.width}x{image.height}"
        if self.exact and image.size != (self.resolution, self.resolution):
            return BrokenImage(f"{self.images.names[i]}: {size} pixels, the others {self.resolution}x{self.resolution}")
        pixels = np.array(centre_crop(image, self.resolution))
        return i, torch.from_numpy(pixels).permute(2, 0, 1), self.images.labels[i]


class ImageBatch(NamedTuple):
    """indices (B,), pixels uint8 (B, 3, R, R), labels (B,)."""

    indices: Tensor
    pixels: Tensor
    labels: Tensor


def image_loader(dataset: ImageTensors, workers: int, skip_broken: bool | None, **batching) -> Iterator[ImageBatch]:
    """Batches as a DataLoader makes them (batch_size= or batch_sampler=), without what could not be decoded.

    skip_broken: leave such files out; otherwise the first is an error. None: as False, where
    the caller has no such option to advise.
    """
    for broken, batch in DataLoader(dataset, num_workers=workers, collate_fn=_collate, **batching):
        if broken and not skip_broken:
            advice = "" if skip_broken is None else ", or pass --skip-broken true to leave such files out"
            raise BrokenImage(f"{broken[0]}{advice}")
        if batch is not None:
            yield batch


def _collate(items: list[tuple[int, Tensor, int] | BrokenImage]) -> tuple[list[BrokenImage], ImageBatch | None]:
    """The broken ones, and a batch of the others: in the worker, for each tensor that leaves it takes a file handle."""
    broken = [item for item in items if isinstance(item, BrokenImage)]
    whole = [item for item in items if not isinstance(item, BrokenImage)]
    if not whole:
        return broken, None
    indices, pixels, labels = zip(*whole, strict=True)
    return broken, ImageBatch(torch.tensor(indices), torch.stack(pixels), torch.tensor(labels))


def image_batches(
    images: ImageSet,
    resolution: int,
    batch_size: int,
    workers: int = 0,
    skip_broken: bool | None = None,
    exact: bool = False,
) -> Iterator[ImageBatch]:
    """All images in order. Skipped files leave smaller batches."""
    return image_loader(ImageTensors(images, resolution, exact), workers, skip_broken, batch_size=batch_size)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded to the nearest level and clipped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
