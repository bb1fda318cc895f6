"""The latent store: VAE moments of every image, and of its mirror image, with the label in one record.

A folder of `manifest.json` and memmap shards `shard-00000.bin`. One record is
    label     int32
    moments   float16 (flips, parts, C, h, h)
with flips 1 (as is) or 2 (as is, mirrored) and parts 1 (deterministic codec) or 2 (mean, std).
Latents are drawn anew from the moments at each use, so a store is not one fixed sample.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpdm.data.codec import Codec, Moments
from fpdm.files import write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_RECORDS = 65_536


@dataclass
class Manifest:
    """What a store holds and how it was made; a training run is checked against it.

    codec, fingerprint, scale: the VAE, a hash of its weights, its scale factor. shape:
    (C, h, h). flips, parts: see the module. std: of the latents as they are drawn.
    content: hash of all records in order. skipped: broken images left out.
    """

    codec: str
    fingerprint: str
    scale: float
    resolution: int
    crop: str
    shape: list[int]
    flips: int
    parts: int
    class_names: list[str]
    count: int = 0
    skipped: int = 0
    shard_records: int = SHARD_RECORDS
    std: float = 0.0
    content: str = ""
    format: int = FORMAT

    @property
    def record(self) -> np.dtype:
        return np.dtype([("label", "<i4"), ("moments", "<f2", (self.flips, self.parts, *self.shape))])


class LatentWriter:
    """Writes a store record by record; it exists only once `close` has written the manifest."""

    def __init__(self, folder: str | Path, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest
        if (self.folder / MANIFEST).exists():
            raise ValueError(f"{folder} already holds a latent store; choose another folder or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._digest = hashlib.blake2b(digest_size=16)
        self._sum = self._squares = 0.0
        self._shard = None

    def write(self, labels: Tensor, flips: list[Moments]) -> None:
        """labels (B,); flips: moments of the images and, with two flips, of the mirrored ones."""
        records = np.zeros(len(labels), self.manifest.record)
        records["label"] = labels.numpy()
        for f, moments in enumerate(flips):
            for p, part in enumerate(part for part in moments if part is not None):
                records["moments"][:, f, p] = part.cpu().numpy()
        if not np.isfinite(records["moments"]).all():
            raise ValueError("the codec gave latents that are not finite in float16; check the VAE and its precision")
        mean = records["moments"][:, 0, 0].astype(np.float64)
        self._sum += mean.sum()
        self._squares += (mean**2).sum()
        if self.manifest.parts == 2:  # a draw varies within its posterior too
            self._squares += (records["moments"][:, 0, 1].astype(np.float64) ** 2).sum()
        for record in np.split(records, self._shard_ends(len(records))):
            if len(record):
                self._append(record)

    def _shard_ends(self, count: int) -> np.ndarray:
        """Where, within the next `count` records, a shard is full."""
        first = -self.manifest.count % self.manifest.shard_records
        return np.arange(first, count, self.manifest.shard_records)

    def _append(self, records: np.ndarray) -> None:
        if self.manifest.count % self.manifest.shard_records == 0:
            self._close_shard()
            path = self.folder / shard_name(self.manifest.count // self.manifest.shard_records)
            self._shard = path.open("wb")
        data = records.tobytes()
        self._shard.write(data)
        self._digest.update(data)
        self.manifest.count += len(records)

    def close(self) -> Manifest:
        """Finish the store; returns its manifest."""
        if self.manifest.count == 0:
            raise ValueError(f"{self.folder}: no image could be encoded")
        self._close_shard()
        values = self.manifest.count * int(np.prod(self.manifest.shape))
        mean = self._sum / values
        self.manifest.std = float(np.sqrt(max(self._squares / values - mean**2, 0.0)))
        self.manifest.content = self._digest.hexdigest()
        write_atomically(self.folder / MANIFEST, json.dumps(asdict(self.manifest), indent=1))
        return self.manifest

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            os.fsync(self._shard.fileno())
            self._shard.close()


class LatentStore:
    """Random access to a store on disk; records are read when asked for, not before."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(f"latents {folder}: no {MANIFEST}; make a store with scripts/encode_latents.py")
        fields = json.loads((self.folder / MANIFEST).read_text())
        if fields.get("format") != FORMAT:
            found = fields.get("format")
            raise ValueError(f"latents {folder}: format {found}, this version reads {FORMAT}; encode again")
        self.manifest = Manifest(**fields)
        starts = range(0, self.manifest.count, self.manifest.shard_records)
        self._shards = [
            self._map(i, min(self.manifest.shard_records, self.manifest.count - start))
            for i, start in enumerate(starts)
        ]

    def _map(self, i: int, records: int) -> np.ndarray:
        path = self.folder / shard_name(i)
        expected = records * self.manifest.record.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise ValueError(f"{path}: {found} bytes instead of {expected}; the store is damaged, encode again")
        return np.memmap(path, self.manifest.record, "r", shape=(records,))

    def __len__(self) -> int:
        return self.manifest.count

    def read(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> tuple[Moments, Tensor]:
        """Moments (B, C, h, h) float32 and labels (B,) of records `indices` (B,).

        mirrored (B,) bool: for which of them to take the mirror image.
        """
        if mirrored is not None and mirrored.any() and self.manifest.flips < 2:
            raise ValueError(f"latents {self.folder}: no mirror images in this store; set data.mirror: false")
        flip = np.zeros(len(indices), int) if mirrored is None else mirrored.astype(int)
        moments = np.empty((len(indices), self.manifest.parts, *self.manifest.shape), np.float32)
        labels = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            record = self._shards[index // self.manifest.shard_records][index % self.manifest.shard_records]
            moments[row], labels[row] = record["moments"][flip[row]], record["label"]
        if not np.isfinite(moments).all():
            damaged = indices[~np.isfinite(moments).all(axis=(1, 2, 3, 4))]
            raise ValueError(
                f"latents {self.folder}: record {damaged[0]} is not finite; the store is damaged, encode again"
            )
        values = torch.from_numpy(moments)
        return Moments(values[:, 0], values[:, 1] if self.manifest.parts == 2 else None), torch.from_numpy(labels)


def check_codec(manifest: Manifest, codec: Codec, store: str | Path) -> None:
    """Refuse a codec whose latents are not those of the store."""
    for name, stored, ours in (
        ("channels", manifest.shape[0], codec.channels),
        ("scale factor", manifest.scale, codec.scale),
        ("weights", manifest.fingerprint, codec.fingerprint),
    ):
        if stored != ours:
            raise ValueError(
                f"vae {codec.source} does not fit the latents in {store}: their {name} is {stored}, "
                f"the VAE's is {ours}; use the VAE they were made with, {manifest.codec}"
            )


def shard_name(i: int) -> str:
    return f"shard-{i:05d}.bin"
