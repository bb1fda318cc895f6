"""Latents that other programs extracted -> latent store."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpdm.data.codec import Codec, LatentMoments
from fpdm.data.latent_formats import STATS, Layout, load_stats, open_layout
from fpdm.data.latents import Manifest
from fpdm.data.writing import Batch, write_store
from fpdm.extent import Extent, plain, said

BATCH = 256


def import_latents(
    source: str | Path,
    folder: str | Path,
    codec: Codec | None = None,
    scale: float | None = None,
    resolution: Extent | None = None,
    class_names: str | Path | None = None,
    name: str | None = None,
    shard: int = 4096,
) -> Manifest:
    """Write the latents in `source` (a layout of fpdm.data.latent_formats) as the store `folder`; returns its manifest.

    codec: what made them, if known. scale: its scale factor; raw latents (safetensors) are multiplied
    by it, after normalising if the source has latents_stats.pt. resolution: of the images, one number for squares or
    (height, width).
    class_names: a file, one name per line. name: which of several .npy sets. shard: latents per file.
    The next call continues an interrupted import; see `write_store`.
    """
    layout = open_layout(source, name)
    resolution = None if resolution is None else plain(resolution)
    if codec is not None:
        scale, resolution = _check_codec(source, layout, codec, scale, resolution)
    normalise, mean, std, scale = _normalisation(source, layout, codec, scale)
    draft = Manifest(
        codec=codec.source if codec else None,
        fingerprint=codec.fingerprint if codec else None,
        scale=scale,
        resolution=resolution,
        crop=None,
        shape=layout.shape,
        flips=layout.flips,
        parts=1,
        class_names=_class_names(layout.labels, class_names),
        images=len(layout.labels),
        images_hash=_hash(layout),
        shard=shard,
        latents_mean=mean,
        latents_std=std,
    )

    def batches(ranges: list[range]) -> Iterator[Batch]:
        for items in ranges:
            labels = torch.from_numpy(layout.labels[items.start : items.stop])
            latents = torch.cat(list(_pieces(layout, items, normalise)))
            yield Batch(
                torch.arange(items.start, items.stop), labels, [LatentMoments(x, None) for x in latents.unbind(1)]
            )

    return write_store(folder, draft, batches, BATCH, "import")


def _pieces(layout: Layout, items: range, normalise: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """The latents `items`, file by file: (n, flips, C, h, w), normalised; ValueError naming a file whose
    values are not finite in float16."""
    file, first = bisect_right(layout.starts, items.start) - 1, items.start
    while first < items.stop:
        start, last = layout.starts[file], min(items.stop, layout.starts[file + 1])
        latents = layout.read(file, first - start, last - start)
        latents = normalise(latents.flatten(0, 1)).view_as(latents)
        if not latents.half().isfinite().all():
            worst = latents.abs().max().item()
            raise ValueError(
                f"{layout.files[file]}: latents up to {worst:.3g} do not fit float16, the type of a store; "
                "extract this file again, or check the scale"
            )
        yield latents
        file, first = file + 1, last


def _check_codec(
    source: str | Path, layout: Layout, codec: Codec, scale: float | None, resolution: int | list[int] | None
) -> tuple[float, int | list[int]]:
    """Scale and resolution of the codec; ValueError if the latents or the settings do not agree with it."""
    channels, height, width = layout.shape
    decoded = plain([height * codec.downsampling, width * codec.downsampling])
    for name, found, ours in (
        ("channels", channels, codec.channels),
        ("scale", scale, codec.scale),
        ("resolution", resolution and said(resolution), said(decoded)),
    ):
        if found is not None and found != ours:
            raise ValueError(
                f"vae {codec.source} does not fit the latents in {source}: {name} {found}, the VAE's {ours}; "
                "give the VAE they were made with, or omit --vae"
            )
    return codec.scale, decoded


def _normalisation(source: str | Path, layout: Layout, codec: Codec | None, scale: float | None) -> tuple:
    """The function that normalises the layout's latents, and the manifest's mean, std and scale."""
    known = (codec.latents_mean, codec.latents_std) if codec else (None, None)
    if not layout.raw:
        return lambda latents: latents, *known, scale
    stats = load_stats(source)
    if stats is None and codec is not None:
        return codec.normalise, *known, scale
    if stats is None and scale is None:
        raise ValueError(f"scale is not set, and {source} has no {STATS}: give --scale, or --vae to use its scale")
    if stats is None:
        return lambda latents: latents * scale, *known, scale
    mean, std = stats
    if mean.shape[1] != layout.shape[0]:
        raise ValueError(f"{Path(source) / STATS}: {mean.shape[1]} channels, the latents have {layout.shape[0]}")
    scale = 1.0 if scale is None else scale

    def normalise(latents: Tensor) -> Tensor:
        return (latents - mean) / std * scale

    if codec is None:
        return normalise, mean.flatten().tolist(), std.flatten().tolist(), scale
    for probe in (torch.zeros_like(mean), torch.ones_like(mean)):  # two points determine an affine map
        if not torch.allclose(codec.normalise(probe), normalise(probe), rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"vae {codec.source} normalises its latents differently from {Path(source) / STATS}: set the same "
                "latents_mean, latents_std and scaling_factor in its config.json, or omit --vae"
            )
    return normalise, *known, scale


def _class_names(labels: np.ndarray, path: str | Path | None) -> list[str]:
    """One name per line of the file, or "0", "1", ..."""
    classes = int(labels.max()) + 1
    if path is None:
        return [str(label) for label in range(classes)]
    names = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    if len(names) < classes:
        raise ValueError(f"class_names {path}: {len(names)} names, but a label is {classes - 1}; name every class")
    return names


def _hash(layout: Layout) -> str:
    """Hash of the files' names and sizes and of all labels."""
    digest = hashlib.blake2b(layout.labels.tobytes(), digest_size=16)
    for path in layout.files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()
