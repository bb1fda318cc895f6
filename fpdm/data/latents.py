"""The latent store: VAE moments of every image, and of its mirror image, with the label in one record.

A folder of `manifest.json` and shards `shard-00000.bin`, ... One record is
    label     int32
    image     int32, which image of the list it was
    attributes float32 (A,), if the images have A > 0 of them
    moments   float16 (flips, parts, C, h, w)
with flips 1 (as is) or 2 (as is, mirrored) and parts 1 (deterministic codec, or samples) or 2 (mean, std).
Shard i holds the images i S .. (i + 1) S - 1 of the list, without skipped ones.
Each use samples new latents from the moments, so a store is not one fixed sample.
"""

import errno
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.config import check_choice, check_extent, check_range, limits
from fpdm.data.attributes import KEPT, Attributes, evenly
from fpdm.data.codec import PIXELS, Codec, LatentMoments
from fpdm.precision import PRECISIONS
from fpdm.records import read_object, read_record

MANIFEST = "manifest.json"
JOURNAL = "encoding.json"
FORMAT = 2
CAN_ADVISE = hasattr(mmap, "MADV_RANDOM")  # not on Windows


@dataclass
class Manifest:
    """What a store holds and how it was made; a training run is checked against it.

    codec, fingerprint, scale: the VAE, a hash of its weights, its scale factor; null for
    imported latents if no VAE was named. resolution: of the images, a number for squares, else [height, width];
    null if not known. latents_mean, latents_std: per channel, for a VAE that
    normalises its latents with them. crop: null for imported latents. shape: (C, h, w). flips, parts: see
    the module. images: length of the list; images_hash: of its names and labels. shard: images
    per shard. precision: of the codec's arithmetic; tf32: whether its float32 could be TF32. attributes_hash: of the
    attributes of all images; attribute_names, attribute_mean, attribute_std: of each, for all images; empty without.
    Results: count of records; skipped, number of broken images left out; shards, the count of each;
    std of the sampled latents; content, a hash of all records in order.
    """

    codec: str | None
    fingerprint: str | None
    scale: float | None
    resolution: int | list[int] | None
    crop: str | None
    shape: list[int]
    flips: int
    parts: int
    class_names: list[str]
    images: int
    images_hash: str
    shard: int
    precision: str | None = None
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    count: int = 0
    skipped: int = 0
    shards: list[int] = field(default_factory=list)
    std: float = 0.0
    content: str = ""
    format: int = FORMAT
    tf32: bool = False
    attributes_hash: str = ""
    attribute_names: list[str] = field(default_factory=list)
    attribute_mean: list[float] = field(default_factory=list)
    attribute_std: list[float] = field(default_factory=list)

    @property
    def record(self) -> np.dtype:
        moments = (self.flips, self.parts, *self.shape)
        attributes = [("attributes", "<f4", (len(self.attribute_names),))] if self.attribute_names else []
        return np.dtype([("label", "<i4"), ("image", "<i4"), *attributes, ("moments", "<f2", moments)])


def load_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`; ValueError for one that is damaged or of another format."""
    found = read_object(path).get("format")
    if found != FORMAT:
        raise ValueError(f"latents {path.parent}: format {found}, this version reads {FORMAT}; encode again")
    manifest = read_record(path, Manifest)
    try:
        _check_numbers(manifest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore the file, or encode again") from error
    return manifest


def _check_numbers(manifest: Manifest) -> None:
    """ValueError for numbers that no store has."""
    check_range(1, limits.LATENT, shape=manifest.shape)
    if len(manifest.shape) != 3:
        raise ValueError(f"shape={manifest.shape}: three numbers, channels, height and width")
    check_range(1, 2, flips=manifest.flips, parts=manifest.parts)
    check_range(1, limits.RECORDS, shard=manifest.shard, images=manifest.images)
    if not manifest.class_names:
        raise ValueError("class_names=[]: at least one (unconditional data has one class)")
    check_range(0, limits.RECORDS, count=manifest.count, skipped=manifest.skipped, shards=manifest.shards)
    check_extent(limits.RESOLUTION, resolution=manifest.resolution)
    for name in ("attribute_mean", "attribute_std"):
        if len(getattr(manifest, name)) != len(manifest.attribute_names):
            raise ValueError(f"{name}={getattr(manifest, name)}: one number for each of {manifest.attribute_names}")
    if any(std <= 0 for std in manifest.attribute_std):
        raise ValueError(f"attribute_std={manifest.attribute_std}: numbers above 0")
    check_choice("precision", manifest.precision or "no", PRECISIONS)
    if manifest.content and (
        sum(manifest.shards) != manifest.count or len(manifest.shards) != -(-manifest.images // manifest.shard)
    ):
        raise ValueError(f"shards={manifest.shards}: not the {manifest.count} records of {manifest.images} images")


class LatentBatch(NamedTuple):
    """Some records of a store, in its format and contiguous, so that a GPU can copy them without the host.

    records: (B, parts, C, h, w) float16, the chosen view of each; labels: (B,) int64; attributes: (B, A) float32, None
    for a store without them.
    """

    records: Tensor
    labels: Tensor
    attributes: Tensor | None = None

    def pin_memory(self) -> "LatentBatch":
        """In pinned memory, from which a GPU copies without the host. (Pinning keeps strides, and a strided tensor
        would still be copied by the host, which then waits for the GPU.)"""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "LatentBatch":
        """On `device`; if the batch is pinned, the host does not wait for the copy."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LatentBatch":
        return LatentBatch(*(None if part is None else change(part) for part in self))

    def condition(self, of: str) -> Tensor:
        """What a network is conditioned on. of: labels or attributes, as its `conditioned_on` says."""
        return getattr(self, of)

    def moments(self) -> LatentMoments:
        """Mean and, for a store with two parts, standard deviation: (B, C, h, w) float32 each."""
        mean, *std = self.records.float().unbind(1)
        return LatentMoments(mean, std[0] if std else None)


class LatentStore:
    """Random access to a store on disk; records are read on request, not before."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            remedy = "make a store with encode_latents or import_latents (fpdm-encode-latents, fpdm-import-latents)"
            if (self.folder / JOURNAL).is_file():
                remedy = "the store is not finished: run the command that made it again to continue"
            raise FileNotFoundError(f"latents {folder}: no {MANIFEST}; {remedy}")
        self.manifest = load_manifest(self.folder / MANIFEST)
        self._ends = np.cumsum(self.manifest.shards)
        self._starts = self._ends - self.manifest.shards
        self._maps = [self._map(i, count) for i, count in enumerate(self.manifest.shards)]
        self._shards = [np.frombuffer(shard, self.manifest.record) for shard in self._maps]

    def _map(self, i: int, count: int) -> mmap.mmap | bytes:
        path = self.folder / shard_name(i)
        expected = count * self.manifest.record.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise ValueError(f"{path}: {found} bytes instead of {expected}; the store is damaged, encode again")
        if not count:
            return b""
        try:
            with path.open("rb") as file:
                shard = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise OSError(
                f"latents {self.folder}: {len(self.manifest.shards)} shards are more files than this process may open; "
                "raise the limit (ulimit -n), or encode with a larger --shard"
            ) from error
        if CAN_ADVISE:
            shard.madvise(mmap.MADV_RANDOM)  # what surrounds a random record is not needed
        return shard

    def __len__(self) -> int:
        return self.manifest.count

    def read(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> LatentBatch:
        """Records `indices` (B,) and their labels; mirrored (B,) bool: which of them to read mirrored.

        ValueError for a record that is not finite, or if mirror images are requested and there are none.
        """
        if mirrored is not None and mirrored.any() and self.manifest.flips < 2:
            raise ValueError(f"latents {self.folder}: no mirror images in this store; set data.mirror: false")
        flips = np.zeros(len(indices), int) if mirrored is None else mirrored.astype(int)
        moments = np.empty((len(indices), self.manifest.parts, *self.manifest.shape), np.float16)
        labels = np.empty(len(indices), np.int64)
        attributes = np.empty((len(indices), len(self.manifest.attribute_names)), np.float32)
        groups = self._by_shard(indices)
        for shard, rows, local in groups:
            self._announce(shard, local, flips[rows])
        for shard, rows, local in groups:
            records = self._shards[shard]
            moments[rows], labels[rows] = records["moments"][local, flips[rows]], records["label"][local]
            if attributes.size:
                attributes[rows] = records["attributes"][local]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.manifest.class_names):
            raise ValueError(
                f"latents {self.folder}: a label of none of the {len(self.manifest.class_names)} classes; "
                "the store is damaged, encode again"
            )
        # Infinity and NaN have bits above the largest finite float16: an order of magnitude faster than isfinite.
        if (moments.view(np.uint16) & 0x7FFF).max(initial=0) > 0x7BFF or not np.isfinite(attributes).all():
            damaged = indices[~(np.isfinite(moments).all(axis=(1, 2, 3, 4)) & np.isfinite(attributes).all(axis=1))]
            raise ValueError(
                f"latents {self.folder}: record {damaged[0]} is not finite; the store is damaged, encode again"
            )
        found = torch.from_numpy(attributes) if self.manifest.attribute_names else None
        return LatentBatch(torch.from_numpy(moments), torch.from_numpy(labels), found)

    @cached_property
    def kept_attributes(self) -> Attributes | None:
        """The attributes of at most KEPT records, evenly spread over the store; None for a store without."""
        if not self.manifest.attribute_names:
            return None
        vectors = [
            self._shards[shard]["attributes"][local] for shard, _, local in self._by_shard(evenly(len(self), KEPT))
        ]
        return Attributes(self.manifest.attribute_names, np.concatenate(vectors))

    def _by_shard(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard needed: its number, which of `indices` it holds, and their positions in it."""
        shards = np.searchsorted(self._ends, indices, side="right")
        order = np.argsort(shards, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        return [(s := shards[rows[0]], rows, indices[rows] - self._starts[s]) for rows in groups if len(rows)]

    def _announce(self, shard: int, records: np.ndarray, flips: np.ndarray) -> None:
        """Ask the system to read these records, all at once: waiting for one after the other is many times slower."""
        if not CAN_ADVISE:
            return
        size, (moments, offset) = self.manifest.record.itemsize, self.manifest.record.fields["moments"][:2]
        starts = records * size // mmap.PAGESIZE * mmap.PAGESIZE
        ends = records * size + offset + (flips + 1) * (moments.itemsize // self.manifest.flips)
        for start, length in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
            self._maps[shard].madvise(mmap.MADV_WILLNEED, start, length)


def check_store_codec(manifest: Manifest, codec: Codec, store: str | Path) -> None:
    """ValueError if the codec's latents are not the store's. What an imported store does not know is not checked."""
    known = manifest.fingerprint is not None
    remedy = "use the VAE they were made with" + (f", {manifest.codec}" if manifest.codec else "")
    for name, stored, ours in (
        ("channels", manifest.shape[0], codec.channels),
        ("scale factor", manifest.scale, codec.scale),
        ("mean per channel", manifest.latents_mean, codec.latents_mean),
        ("deviation per channel", manifest.latents_std, codec.latents_std),
        ("weights", manifest.fingerprint, codec.fingerprint),
    ):
        if not _same(stored, ours) and (known or stored is not None):
            raise ValueError(
                f"vae {codec.source} does not fit the latents in {store}: their {name} is {stored}, "
                f"the VAE's is {ours}; {remedy}"
            )


def _same(stored: float | str | list[float] | None, ours: float | str | list[float] | None) -> bool:
    """Equal; numbers up to the rounding of the files they were read from."""
    if stored is None or ours is None or isinstance(stored, str):
        return stored == ours
    return np.shape(stored) == np.shape(ours) and np.allclose(stored, ours, rtol=1e-5, atol=1e-7)


def check_std(manifest: Manifest) -> str | None:
    """A warning if latents are far from unit variance, which the noise schedule assumes. Pixels may be."""
    if manifest.codec == PIXELS or 0.7 <= manifest.std <= 1.3:
        return None
    return (
        f"warning: the latents' standard deviation is {manifest.std:.3f}, outside 0.7..1.3: the scale factor "
        f"{manifest.scale} does not fit these images, and the noise schedule assumes 1"
    )


def shard_name(i: int) -> str:
    """The file name of shard i (0 is the first)."""
    return f"shard-{i:05d}.bin"
