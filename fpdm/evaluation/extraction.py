"""Features of an image set of any size: in batches, on several processes, resumed after an interruption.

Each set and extractor has a folder:

rank-0000.npz   the sums of one process, and which chunks are in them
kept.f32        features of single images, evenly spread over the set, for metrics that need them one by one
gathered.npz    the result; the files of the ranks are removed once it exists
"""

import os
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from fpdm.damage import damaged
from fpdm.devices import send
from fpdm.evaluation.accumulate import Accumulator, random_splits
from fpdm.evaluation.extractor import Extractor
from fpdm.evaluation.metrics import Statistics
from fpdm.evaluation.samples import Samples
from fpdm.files import make_folder, write_arrays
from fpdm.locks import only_writer

KEPT, RESULT = "kept.f32", "gathered.npz"
CHUNK = 4096  # images between two saves


class Gathered(NamedTuple):
    """What scores are computed from.

    pool: statistics of the pool features of all images; spatial: of Inception's spatial features; inception_score: mean
    and standard deviation; kept: features (K, F) of K images evenly spread over the set, or of all.
    """

    pool: Statistics
    spatial: Statistics | None
    inception_score: tuple[float, float] | None
    kept: Tensor | None


def gather(
    samples: Samples,
    extractor: Extractor,
    folder: Path,
    state: PartialState,
    *,
    batch_size: int = 64,
    workers: int = 0,
    keep: int = 50_000,
    chunk: int = CHUNK,
) -> Gathered:
    """Features of all images of a set, summed up; resumes where an earlier call in this folder was stopped.

    keep: number of images whose features are kept. Every process calls this, and returns the whole result.
    ValueError if a file in the folder is damaged, or if features are not finite.
    """
    result = folder / RESULT
    with ExitStack() as held:
        if state.is_main_process:
            make_folder(folder)
            held.enter_context(only_writer(folder, wait=True))  # another program may compute the same features
        state.wait_for_everyone()
        if not result.exists():
            _extract(samples, extractor, folder, state, batch_size, workers, keep, chunk)
        state.wait_for_everyone()
        return _load(folder)


def _extract(samples, extractor, folder, state, batch_size, workers, keep, chunk) -> None:
    kept = np.unique(np.linspace(0, samples.count - 1, min(keep, samples.count)).round().astype(int))
    mine = folder / f"rank-{state.process_index:04d}.npz"
    finished = {int(i) for path in sorted(folder.glob("rank-*.npz")) for i in _read(path)["chunks"]}
    state.wait_for_everyone()  # nobody writes before everybody has looked
    before = _read(mine) if mine.exists() else {"chunks": np.array([], int)}
    accumulator, done = Accumulator.of(before), [int(i) for i in before["chunks"]]
    chunks = [i for i in range(-(-samples.count // chunk)) if i not in finished][
        state.process_index :: state.num_processes
    ]
    splits = random_splits(samples.count).to(state.device)
    sizes = [min(chunk, samples.count - i * chunk) for i in chunks]
    label = f"{extractor.name} features"
    with tqdm(total=sum(sizes), desc=label, unit="image", disable=not state.is_main_process) as progress:
        for i in chunks:
            first, last = i * chunk, min((i + 1) * chunk, samples.count)
            rows, at = [], first
            for images in samples.batches(batch_size, range(first, last), workers):
                features = extractor.features(send(_checked(images), state.device))
                accumulator.add(features, splits[at : at + len(images)])
                rows.append(features.pool)
                at += len(images)
                progress.update(len(images))
            arrays = accumulator.arrays()  # the only place where the host waits for the device
            _keep(folder / KEPT, kept, first, torch.cat(rows).cpu())
            done.append(i)
            write_arrays(mine, {"chunks": np.array(done), **arrays})
    state.wait_for_everyone()
    if state.is_main_process:
        _merge(folder, -(-samples.count // chunk))
    state.wait_for_everyone()


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8: 0..255 is needed")
    return images


def _keep(path: Path, kept: np.ndarray, first: int, features: Tensor) -> None:
    """Write the kept ones of a chunk's features to their places in the file."""
    low, high = np.searchsorted(kept, [first, first + len(features)])
    if low == high:
        return
    width = features.shape[1]
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:  # other processes write to it too
        file.seek(4 * width * int(low))
        file.write(features[kept[low:high] - first].numpy().astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())  # before the file of the rank says that they are there


def _merge(folder: Path, chunks: int) -> None:
    """Sum up the files of all processes; ValueError if a chunk is missing."""
    paths, whole, seen = sorted(folder.glob("rank-*.npz")), Accumulator.empty(), set()
    for path in paths:
        arrays = _read(path)
        seen |= {int(i) for i in arrays["chunks"]}
        whole.merge(Accumulator.of(arrays))
    if len(seen) != chunks:
        raise ValueError(f"{folder}: {chunks - len(seen)} of {chunks} chunks are missing; run the same command again")
    write_arrays(folder / RESULT, whole.arrays())
    for path in paths:
        path.unlink()


def _load(folder: Path) -> Gathered:
    whole = Accumulator.of(_read(folder / RESULT))
    pool = whole.pool.statistics()
    kept = np.fromfile(folder / KEPT, "<f4")
    with _damaged(folder / KEPT):
        if len(kept) % len(pool.mean):
            raise ValueError(f"{len(kept)} numbers are not a multiple of {len(pool.mean)} features")
    kept = kept.reshape(-1, len(pool.mean))
    return Gathered(
        pool=pool,
        spatial=whole.spatial.statistics() if whole.spatial.count else None,
        inception_score=whole.inception.score() if whole.inception.labels is not None else None,
        kept=torch.from_numpy(kept),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The sums in a file: `chunks` in that of a process, and what an Accumulator saves."""
    with _damaged(path):
        with np.load(path) as file:
            arrays = dict(file)
        if Accumulator.of(arrays).pool.total is None:
            raise ValueError("pool.total is missing")
        chunks = arrays.get("chunks")
        if path.name != RESULT and (chunks is None or chunks.ndim != 1 or chunks.dtype.kind != "i"):
            raise ValueError("chunks is missing, or no list of whole numbers")
    return arrays


def _damaged(path: Path) -> AbstractContextManager[None]:
    return damaged(path, f"{path} is damaged", f"remove the folder {path.parent}, and run again")
