"""A store of random numbers, for measuring the cost of reading and training without images."""

from collections.abc import Iterator
from pathlib import Path

import torch

from fpdm.data.codec import LatentMoments
from fpdm.data.latents import Manifest
from fpdm.data.writing import Batch, write_store

WRITTEN = 256  # records at a time


def write_random_store(
    folder: str | Path, records: int, shape: list[int], classes: int = 1, shard: int = 4096
) -> Manifest:
    """Random means and standard deviations of `shape` (C, h, w), with mirror images; labels cycle through the classes.

    The same `WRITTEN` records repeat, except for labels and indices. This makes no difference to reading.
    """
    manifest = Manifest(
        codec=None, fingerprint=None, scale=None, resolution=None, crop=None, shape=list(shape), flips=2, parts=2,
        class_names=[str(c) for c in range(classes)], images=records, images_hash="", shard=shard,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, WRITTEN, *shape, generator=generator)
    stds = torch.rand(2, WRITTEN, *shape, generator=generator) * 0.1

    def batches(ranges: list[range]) -> Iterator[Batch]:
        for items in ranges:
            indices = torch.arange(items.start, items.stop)
            views = [
                LatentMoments(mean[: len(items)], std[: len(items)]) for mean, std in zip(means, stds, strict=True)
            ]
            yield Batch(indices, indices % classes, views)

    return write_store(folder, manifest, batches, WRITTEN, "write")
