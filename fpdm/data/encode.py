"""Images -> latent store."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fpdm.config import EncodeConfig
from fpdm.data.batches import ImageTensors, image_loader, to_signed
from fpdm.data.codec import Codec, LatentMoments
from fpdm.data.images import ImageSet
from fpdm.data.latents import Manifest
from fpdm.data.writing import Batch, write_store
from fpdm.devices import send
from fpdm.extent import check_multiple, height_width, plain


def encode(
    images: ImageSet,
    codec: Codec,
    folder: str | Path,
    config: EncodeConfig,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
    barrier: Callable[[], None] = lambda: None,
    arrive: Callable[[], Callable[[], bool]] = lambda: lambda: True,
) -> Manifest | None:
    """Write the store `folder`, or finish what an interrupted run left of it; see `write_store`.

    codec: on `device`, in the config's precision. Returns the manifest, with the number of
    skipped images, on the main process (rank 0) of `ranks`; None on the others.
    """
    draft = _draft(images, codec, config, device)
    # The last batch is padded, so that the codec sees one shape only: its rounding may differ between shapes.
    full = min(config.batch_size, config.shard, len(images))

    def batches(ranges: list[range]) -> Iterator[Batch]:
        dataset = ImageTensors(images, config.resolution)
        for indices, pixels, labels in image_loader(dataset, config.workers, config.skip_broken, batch_sampler=ranges):
            x = to_signed(send(_filled(pixels, full), device))
            moments = [codec.encode(view) for view in (x, x.flip(-1))[: draft.flips]]
            attributes = images.attributes and images.attributes.vectors[indices.numpy()]
            yield Batch(indices, labels, [_first(view, len(labels)) for view in moments], attributes)

    return write_store(folder, draft, batches, full, "encode", rank, ranks, barrier, arrive)


def _draft(images: ImageSet, codec: Codec, config: EncodeConfig, device: torch.device) -> Manifest:
    """The manifest of the store to write; the codec is tried on an image of zeros."""
    check_multiple("resolution", config.resolution, codec.downsampling, "the VAE's downsampling")
    height, width = height_width("resolution", config.resolution)
    probe = codec.encode(torch.zeros(1, 3, height, width, device=device))
    return Manifest(
        codec=codec.source,
        fingerprint=codec.fingerprint,
        scale=codec.scale,
        resolution=plain(config.resolution),
        crop="centre",
        shape=[codec.channels, height // codec.downsampling, width // codec.downsampling],
        flips=2 if config.mirror else 1,
        parts=1 if probe.std is None else 2,
        class_names=images.class_names,
        images=len(images),
        images_hash=_hash(images),
        shard=config.shard,
        precision=config.precision,
        tf32=config.tf32,
        latents_mean=codec.latents_mean,
        latents_std=codec.latents_std,
        **(images.attributes.facts() if images.attributes else {}),
    )


def _hash(images: ImageSet) -> str:
    """Hash of names and labels, without the prefix that all names share: a data set may be moved."""
    moved = len(os.path.commonprefix(images.names))  # noqa: RUF071, characters are meant
    digest = hashlib.blake2b(digest_size=16)
    for name, label in zip(images.names, images.labels, strict=True):
        digest.update(f"{name[moved:]}\0{label}\0".encode())
    return digest.hexdigest()


def _filled(pixels: Tensor, count: int) -> Tensor:
    """A batch padded to `count` images with copies of the last one."""
    return torch.cat([pixels, pixels[-1:].expand(count - len(pixels), -1, -1, -1)])


def _first(moments: LatentMoments, count: int) -> LatentMoments:
    """The moments of the first `count` images."""
    return LatentMoments(moments.mean[:count], None if moments.std is None else moments.std[:count])
