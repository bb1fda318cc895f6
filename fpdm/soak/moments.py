"""Moments inside a save: what a process does to the files of a folder, operation by operation.

Python tells of every file that it opens, renames, removes or makes (audit events); fsync is wrapped. So every save,
rename, pruning and finished shard is seen, whoever calls for it.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate",
          "shutil.rmtree"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR


class Operation(NamedTuple):
    """name: of the audit event, or fsync. path: what it is about. before: whether it is about to happen (an fsync is
    also told of when it has happened)."""

    name: str
    path: str
    before: bool = True
    target: str | None = None


def watch(folder: Path, on_operation: Callable[[Operation], None], reads: bool = False) -> None:
    """Call a function for every operation of this process on files in `folder`, from now on.

    reads: also for files that are opened only to be read.
    """
    root, fsync, busy = f"{folder.resolve()}{os.sep}", os.fsync, False

    def tell(operation: Operation) -> None:
        nonlocal busy
        if busy or not any(part and part.startswith(root) for part in (operation.path, operation.target)):
            return
        busy = True
        try:
            on_operation(operation)
        finally:
            busy = False

    def hook(event: str, arguments: tuple) -> None:
        if busy or event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not reads and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        where = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else None
        two = event in ("os.rename", "os.link", "os.symlink")
        tell(Operation(event, _whole(arguments[0], where), True, _whole(arguments[1]) if two else None))

    def synced(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")
        tell(Operation("fsync", path))
        fsync(handle)
        tell(Operation("fsync", path, before=False))

    os.fsync = synced
    sys.addaudithook(hook)


def _whole(path: str | bytes | os.PathLike, handle: int | None = None) -> str:
    """The absolute path, also of a name within an open folder."""
    name = os.fsdecode(path)
    if os.path.isabs(name):
        return name
    base = os.getcwd() if handle in (None, -1) else os.readlink(f"/proc/self/fd/{handle}")
    return os.path.join(base, name)


def count(folder: Path, into: Path, reads: bool = False) -> Callable[[int], None]:
    """For `before` of a child: writes into a file per process, a character each, how many operations it made."""

    def before(rank: int) -> None:
        handle = os.open(f"{into}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        watch(folder, lambda operation: os.write(handle, b"."), reads)

    return before


def at(folder: Path, number: int, act: Callable[[Operation], None], rank: int = 0, reads: bool = False):
    """For `before` of a child: calls `act` at the operation of this number of one of its processes."""

    def before(own: int) -> None:
        left = number

        def on_operation(operation: Operation) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                act(operation)

        if own == rank:
            watch(folder, on_operation, reads)

    return before
