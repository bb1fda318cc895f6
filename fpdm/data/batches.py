"""From images to batches of pixels: decode in worker processes, crop, skip broken files.

B batch, H and W height and width in pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fpdm.data.images import BrokenImage, ImageSet
from fpdm.extent import Extent, height_width


def centre_crop(image: Image.Image, resolution: Extent) -> Image.Image:
    """ADM's crop, for any height and width: halve with a box filter while at least twice too large, resize so that the
    image just covers them, crop the centre."""
    height, width = height_width("resolution", resolution)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class ImageTensors(Dataset):
    """Images as (index, uint8 (3, H, W), label), or a BrokenImage with the reason.

    exact: an image of another size counts as broken, instead of being cropped and resized.
    """

    def __init__(self, images: ImageSet, resolution: Extent, exact: bool = False):
        self.images, self.resolution, self.exact = images, height_width("resolution", resolution), exact

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor, int] | BrokenImage:
        try:
            image = self.images.load(i)
        except BrokenImage as error:  # returned: raised in a worker process it would arrive as a traceback's text
            return BrokenImage(str(error))
        found, expected = (image.height, image.width), self.resolution
        if self.exact and found != expected:
            sizes = "{}x{} pixels, the others {}x{} (height x width)".format(*found, *expected)
            return BrokenImage(f"{self.images.names[i]}: {sizes}")
        pixels = np.array(centre_crop(image, self.resolution))
        return i, torch.from_numpy(pixels).permute(2, 0, 1), self.images.labels[i]


class ImageBatch(NamedTuple):
    """indices (B,), pixels uint8 (B, 3, H, W), labels (B,)."""

    indices: Tensor
    pixels: Tensor
    labels: Tensor


def image_loader(dataset: ImageTensors, workers: int, skip_broken: bool | None, **batching) -> Iterator[ImageBatch]:
    """Batches from a DataLoader (batch_size= or batch_sampler=), without files that cannot be decoded.

    skip_broken: skip such files; if False, the first one is an error. None: like False, for a
    caller without such an option, so that the error does not suggest it.
    """
    for broken, batch in DataLoader(dataset, num_workers=workers, collate_fn=_collate, **batching):
        if broken and not skip_broken:
            advice = "" if skip_broken is None else ", or pass --skip-broken true to skip such files"
            raise BrokenImage(f"{broken[0]}{advice}")
        if batch is not None:
            yield batch


def _collate(items: list[tuple[int, Tensor, int] | BrokenImage]) -> tuple[list[BrokenImage], ImageBatch | None]:
    """The broken ones, and a batch of the others. This runs in the worker, because each tensor that leaves it takes a
    file handle."""
    broken = [item for item in items if isinstance(item, BrokenImage)]
    whole = [item for item in items if not isinstance(item, BrokenImage)]
    if not whole:
        return broken, None
    indices, pixels, labels = zip(*whole, strict=True)
    return broken, ImageBatch(torch.tensor(indices), torch.stack(pixels), torch.tensor(labels))


def image_batches(
    images: ImageSet,
    resolution: Extent,
    batch_size: int,
    workers: int = 0,
    skip_broken: bool | None = None,
    exact: bool = False,
) -> Iterator[ImageBatch]:
    """All images in order. Skipped files make batches smaller."""
    return image_loader(ImageTensors(images, resolution, exact), workers, skip_broken, batch_size=batch_size)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded to the nearest level and clipped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
