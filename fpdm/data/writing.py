"""Writing a latent store: processes share the shards, and a kill at any moment loses at most one batch.

While a store is being written its folder holds, besides the finished shards,
    encoding.json              the manifest without its results; written before any record
    shard-00012.bin.partial    records in the order of the images, appended batch by batch
    shard-00012.json           count, digest and sums of a finished shard, from which the manifest is made
A run with the same settings continues after the last complete record of each partial shard. `manifest.json`
is written last; without it there is no store.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from fpdm.data.codec import LatentMoments
from fpdm.data.latents import Manifest
from fpdm.data.shards import StoreFolder
from fpdm.files import make_folder
from fpdm.locks import only_writer

POLL_SECONDS = 0.5


class Batch(NamedTuple):
    """indices (B,) in the list of images, labels (B,), views: moments of the images and, with two flips, of the
    mirrored ones, attributes (B, A) if the images have any. Indices and labels are tensors on the CPU."""

    indices: Tensor
    labels: Tensor
    views: list[LatentMoments]
    attributes: np.ndarray | None = None


def write_store(
    folder: str | Path,
    draft: Manifest,
    batches: Callable[[list[range]], Iterable[Batch]],
    batch_size: int,
    title: str,
    rank: int = 0,
    ranks: int = 1,
    barrier: Callable[[], None] = lambda: None,
    arrive: Callable[[], Callable[[], bool]] = lambda: lambda: True,
) -> Manifest | None:
    """Write what is missing of the store `folder`. Returns its manifest on the main process (rank 0), else None.

    batches: takes ranges of at most `batch_size` images and returns the records of those images in
    order; images left out count as skipped. Rank r takes the missing ones of the shards r, r + ranks, ...
    barrier: waits for all processes; called once, before any of them looks at the folder. arrive: called once, by a
    process that has written its share. It returns a function that tells whether all have, see
    `fpdm.devices.arrive`; the main process asks it, so an error of a lost process reaches it.
    A finished store with the same settings is not changed. ValueError while another program writes the store.
    """
    with ExitStack() as held:
        return _write(StoreFolder(folder, draft), held, batches, batch_size, title, rank, ranks, barrier, arrive)


def _write(
    store: StoreFolder,
    held: ExitStack,
    batches: Callable[[list[range]], Iterable[Batch]],
    batch_size: int,
    title: str,
    rank: int,
    ranks: int,
    barrier: Callable[[], None],
    arrive: Callable[[], Callable[[], bool]],
) -> Manifest | None:
    """`write_store`; held: takes the lock of the folder, on the main process."""
    if rank == 0:
        make_folder(store.folder)
        held.enter_context(only_writer(store.folder))
        if store.finished() is None:  # looked at under the lock: another program may have finished it just now
            store.begin()
    barrier()
    finished = store.begun()
    # By number, not by position in the list: processes on other machines may see an older state of the folder.
    share = [shard for shard in store.missing() if shard % ranks == rank] if finished is None else []
    if rank and not share:
        arrive()
        return None
    if finished is not None:
        store.tidy()  # what is left if a kill came just after the manifest
        arrive()
        return finished
    with _progress(store, title, shown=rank == 0) as show:
        _write_share(store, share, batches, batch_size, show)
        all_there = arrive()
        if rank:
            return None
        while not all_there():
            time.sleep(POLL_SECONDS)
            show()
    return store.finish()


def _write_share(
    store: StoreFolder, share: list[int], batches: Callable, batch_size: int, show: Callable[[], None]
) -> None:
    """Write the shards `share`, each from where it stopped."""
    ranges = []
    for shard in share:
        images = store.remaining(shard)
        ranges += [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    waiting = deque(share)
    for batch in batches(ranges):
        shard = int(batch.indices[0]) // store.draft.shard
        while waiting[0] != shard:
            store.close(waiting.popleft())
        store.append(shard, pack(store.draft, batch))
        show()
    while waiting:
        store.close(waiting.popleft())
        show()


def pack(manifest: Manifest, batch: Batch) -> np.ndarray:
    """A batch as records (B,); ValueError if a value is not finite in float16."""
    records = np.zeros(len(batch.labels), manifest.record)
    records["label"], records["image"] = batch.labels.numpy(), batch.indices.numpy()
    if batch.attributes is not None:
        records["attributes"] = batch.attributes
    for f, moments in enumerate(batch.views):
        for p, part in enumerate(part for part in moments if part is not None):
            records["moments"][:, f, p] = part.half().cpu().numpy()
    if not np.isfinite(records["moments"]).all():
        raise ValueError(
            f"vae {manifest.codec}: returned latents that are not finite in float16; check its weights and precision"
        )
    return records


@contextmanager
def _progress(store: StoreFolder, title: str, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar over the images of all processes, counted in the folder; its rate ignores earlier runs."""
    with tqdm(
        total=store.draft.images, initial=store.images_done(), desc=title, unit="image", disable=not shown
    ) as bar:
        looked = time.monotonic()

        def show() -> None:
            nonlocal looked
            if shown and time.monotonic() - looked >= POLL_SECONDS:
                bar.update(store.images_done() - bar.n)
                looked = time.monotonic()

        yield show
        if shown:
            bar.update(store.images_done() - bar.n)
