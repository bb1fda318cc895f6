"""The folder of an unfinished latent store: which shards are done, what a kill left, and the manifest at the end."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fpdm.data.latents import JOURNAL, MANIFEST, Manifest, load_manifest, shard_name
from fpdm.files import make_folder, sync_to_disk, write_atomically
from fpdm.records import read_record

CHUNK_BYTES = 16 * 2**20
LARGEST = 1e30  # no shard of float16 numbers has larger sums
SHARED_SECONDS = 60  # a shared file system may take so long to show another process's file
NOT_COMPARED = {"codec", "count", "skipped", "shards", "std", "content"}  # a VAE may move; the rest are results
SETTINGS = {"fingerprint": "vae (weights)", "flips": "mirror (views per image)", "images_hash": "images (hash)",
            "attributes_hash": "attributes (hash)"}  # fmt: skip


@dataclass
class Summary:
    """Of a finished shard: records, a hash of them, sums of their values."""

    count: int
    digest: str
    sum: float
    squares: float

    def __post_init__(self):
        if not (self.count >= 0 and abs(self.sum) < LARGEST and 0 <= self.squares < LARGEST):
            raise ValueError(f"count={self.count}, sum={self.sum}, squares={self.squares}: not those of a shard")


class StoreFolder:
    """The files of a store being made. `draft` is its manifest without the results."""

    def __init__(self, folder: str | Path, draft: Manifest):
        self.folder, self.draft = Path(folder), draft
        self._written: dict[int, int] = {}  # bytes in the unfinished shards that this process writes

    @property
    def shards(self) -> range:
        return range(-(-self.draft.images // self.draft.shard))

    def images_of(self, shard: int) -> range:
        """The images that belong to a shard."""
        return range(shard * self.draft.shard, min((shard + 1) * self.draft.shard, self.draft.images))

    def finished(self) -> Manifest | None:
        """The manifest, if the store is finished; ValueError if it was made with other settings."""
        if not (self.folder / MANIFEST).exists():
            return None
        manifest = load_manifest(self.folder / MANIFEST)
        self._check_same(manifest)
        return manifest

    def begin(self) -> None:
        """Write the journal, or check that an existing one has the same settings."""
        if (self.folder / JOURNAL).exists():
            return self._check_same(load_manifest(self.folder / JOURNAL))
        if any(self.folder.glob("shard-*")):
            raise ValueError(f"{self.folder} holds shards but no {JOURNAL}; choose another --out or remove it")
        with _writing(self.folder):
            make_folder(self.folder)
            write_atomically(self.folder / JOURNAL, json.dumps(asdict(self.draft), indent=1))

    def begun(self) -> Manifest | None:
        """The manifest if this store is finished, None if it is only begun; ValueError if with other settings."""
        for _ in range(SHARED_SECONDS):
            if (finished := self.finished()) is not None:
                return finished
            if (self.folder / JOURNAL).exists():
                break
            time.sleep(1)
        return self._check_same(load_manifest(self.folder / JOURNAL))

    def _check_same(self, found: Manifest) -> None:
        for name, ours in vars(self.draft).items():
            theirs = getattr(found, name)
            if name not in NOT_COMPARED and theirs != ours:
                raise ValueError(
                    f"{self.folder} holds latents made with other settings: {SETTINGS.get(name, name)} was "
                    f"{theirs}, is {ours}; choose another --out or remove it"
                )

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        there = self._listing()
        return [shard for shard in self.shards if shard_name(shard) not in there]

    def images_done(self) -> int:
        """How many images are written or skipped, by all processes."""
        there, done = self._listing(), 0
        for shard in self.shards:
            if shard_name(shard) in there:
                done += len(self.images_of(shard))
            elif self._partial(shard).name in there:
                done += self._images_written(shard)
        return done

    def remaining(self, shard: int) -> range:
        """The images that a shard still lacks, after removing a record that a kill cut short."""
        path, images = self._partial(shard), self.images_of(shard)
        kept, last = 0, images.start - 1
        for chunk in self._records(path) if path.exists() else ():
            plausible = _increasing(chunk["image"], last, images.stop)
            kept += plausible
            if plausible:
                last = int(chunk["image"][plausible - 1])
            if plausible < len(chunk):
                break
        self._written[shard] = kept * self.draft.record.itemsize
        if path.exists():
            with _writing(path):
                os.truncate(path, self._written[shard])
        return range(last + 1, images.stop)

    def append(self, shard: int, records: np.ndarray) -> None:
        """Add records to an unfinished shard; `remaining` must have been called for it."""
        path = self._partial(shard)
        with _writing(path), path.open("ab") as file:
            if file.tell() != self._written[shard]:
                raise ValueError(f"{path}: another process is writing this store; end it, then run this command again")
            file.write(records.tobytes())
        self._written[shard] += records.nbytes

    def close(self, shard: int) -> None:
        """Finish a shard: write its summary, sync it to disk, and give it its final name."""
        path = self._partial(shard)
        with _writing(path):
            path.touch()  # if every image was skipped
            self._summarise(shard, path)
            sync_to_disk(path)
            os.replace(path, self.folder / shard_name(shard))
            sync_to_disk(self.folder)

    def finish(self) -> Manifest:
        """Once all shards are written, write the manifest, which makes the folder a store."""
        self._wait_for_shards()
        summaries = [self._load_summary(shard) for shard in self.shards]
        count = sum(summary["count"] for summary in summaries)
        if count == 0:
            raise ValueError(f"{self.folder}: no image could be encoded; remove this folder and check the images")
        values = count * int(np.prod(self.draft.shape))
        mean = sum(summary["sum"] for summary in summaries) / values
        variance = sum(summary["squares"] for summary in summaries) / values - mean**2
        digests = "".join(summary["digest"] for summary in summaries)
        manifest = replace(
            self.draft,
            count=count,
            skipped=self.draft.images - count,
            shards=[summary["count"] for summary in summaries],
            std=float(np.sqrt(max(variance, 0.0))),
            content=hashlib.blake2b(digests.encode(), digest_size=16).hexdigest(),
        )
        with _writing(self.folder):
            write_atomically(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
            self.tidy()
        return manifest

    def _wait_for_shards(self) -> None:
        for _ in range(SHARED_SECONDS):
            if not (missing := self.missing()):
                return
            time.sleep(1)
        raise ValueError(
            f"{self.folder}: {shard_name(missing[0])} is not there, though every process has written its share; do all "
            "of them see the same folder? Run the same command again"
        )

    def tidy(self) -> None:
        """Remove files that only the writing needed."""
        for pattern in (JOURNAL, "shard-*.json", ".*.partial"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _partial(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.partial"

    def _summary(self, shard: int) -> Path:
        return (self.folder / shard_name(shard)).with_suffix(".json")

    def _listing(self) -> set[str]:
        return set(os.listdir(self.folder)) if self.folder.is_dir() else set()

    def _records(self, path: Path) -> Iterator[np.ndarray]:
        """The whole records of a shard's file, in chunks."""
        size = self.draft.record.itemsize
        with path.open("rb") as file:
            while len(data := file.read(max(1, CHUNK_BYTES // size) * size)) >= size:
                yield np.frombuffer(data, self.draft.record, count=len(data) // size)

    def _images_written(self, shard: int) -> int:
        """How many images of an unfinished shard are done, according to its last complete record."""
        size, images = self.draft.record.itemsize, self.images_of(shard)
        try:
            with self._partial(shard).open("rb") as file:
                whole = file.seek(0, os.SEEK_END) // size
                if not whole:
                    return 0
                file.seek((whole - 1) * size + self.draft.record.fields["image"][1])
                last = int.from_bytes(file.read(4), "little")
        except FileNotFoundError:  # finished just now
            return len(images)
        return min(max(last + 1 - images.start, 0), len(images))

    def _load_summary(self, shard: int) -> dict:
        """A finished shard's summary; made again if a crash of the machine lost it."""
        try:
            return asdict(read_record(self._summary(shard), Summary))
        except (FileNotFoundError, ValueError):
            return self._summarise(shard, self.folder / shard_name(shard))

    def _summarise(self, shard: int, path: Path) -> dict:
        """Count, digest and sums of a shard's records, written to its shard-*.json."""
        digest, count, total, squares = hashlib.blake2b(digest_size=16), 0, 0.0, 0.0
        last = self.images_of(shard).start - 1
        for chunk in self._records(path):
            if _increasing(chunk["image"], last, self.images_of(shard).stop) < len(chunk):
                raise ValueError(f"{path}: records are out of order; remove this file and run the same command again")
            last = int(chunk["image"][-1])
            digest.update(chunk)
            count += len(chunk)
            mean = chunk["moments"][:, 0, 0].astype(np.float64)
            total += float(mean.sum())
            squares += float((mean**2).sum())
            if self.draft.parts == 2:  # a sample also varies within its posterior
                squares += float((chunk["moments"][:, 0, 1].astype(np.float64) ** 2).sum())
        summary = {"count": count, "digest": digest.hexdigest(), "sum": total, "squares": squares}
        write_atomically(self._summary(shard), json.dumps(summary))
        return summary


def _increasing(images: np.ndarray, last: int, stop: int) -> int:
    """How many leading entries of `images` follow `last` in increasing order and lie below `stop`."""
    follows = (np.diff(images.astype(np.int64), prepend=last) > 0) & (images < stop)
    return len(images) if follows.all() else int(follows.argmin())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes a disk error say that the work so far is kept, and how to continue."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror or error}; what is written is kept: make room, or fix the cause, "
            "and run the same command again to continue"
        ) from error
