"""Moments inside a save: what a process does to the files of a folder, operation by operation.

Python tells of every file that it opens, renames, removes or makes (audit events); fsync is wrapped. So every save,
rename, pruning and finished shard is seen, whoever calls for it.

This module imports nothing else of the package: processes that a command starts import it before anything else.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate",
          "shutil.rmtree"}  # fmt: skip
MAKING = {"open", "os.mkdir", "os.symlink", "os.link"}  # what may need room on the disk
WRITING = os.O_WRONLY | os.O_RDWR
AIM = "FPDM_SOAK_AIM"  # environment variable: the Aim of a command, for the processes that it starts
WATCHED = "from fpdm.soak.moments import join\n\njoin()\n"  # their sitecustomize.py


class Operation(NamedTuple):
    """name: of the audit event, or fsync. path: what it is about. before: whether it is about to happen (an fsync is
    also told of when it has happened). kept: bytes of a file that is synced which were there before this process or at
    its last sync, so that nothing can tear them."""

    name: str
    path: str
    before: bool = True
    target: str | None = None
    kept: int = 0


class Aim(NamedTuple):
    """folder: whose files are watched. counted: file that gets a character for every operation, `w` for those that may
    need room on the disk. at: number of the operation at which `act`, one of ACTS, is called (None for none). place:
    a file for the act."""

    folder: str
    counted: str
    at: int | None = None
    act: str = ""
    place: str = ""


def watch(folder: Path, on_operation: Callable[[Operation], None]) -> None:
    """Call a function for every operation of this process on `folder` and what is in it, from now on."""
    root, fsync, busy = f"{folder.resolve()}{os.sep}", os.fsync, False
    kept: dict[str, int] = {}  # bytes of a file, by its path

    def tell(operation: Operation) -> None:
        nonlocal busy
        if busy or not any(part and f"{part}{os.sep}".startswith(root) for part in (operation.path, operation.target)):
            return
        busy = True
        try:
            on_operation(operation)
        finally:
            busy = False

    def hook(event: str, arguments: tuple) -> None:
        if busy or event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        where = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else None
        two = event in ("os.rename", "os.link", "os.symlink")
        path = _whole(arguments[0], where)
        if event == "open":
            kept[path] = os.path.getsize(path) if os.path.isfile(path) and not arguments[2] & os.O_TRUNC else 0
        tell(Operation(event, path, True, _whole(arguments[1]) if two else None))

    def synced(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")
        tell(Operation("fsync", path, kept=kept.get(path, 0)))
        fsync(handle)
        kept[path] = os.path.getsize(path)
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


def take_aim(aim: Aim, noted: Callable[[], None] = lambda: None) -> None:
    """Count this process's operations from now on, and act at the one that is aimed at. noted: called before each."""
    handle = os.open(aim.counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_operation(operation: Operation) -> None:
        noted()
        os.write(handle, b"w" if operation.name in MAKING else b".")
        if os.lseek(handle, 0, os.SEEK_CUR) - 1 == aim.at:  # the file's length after this write, by any process
            ACTS[aim.act](operation, aim)

    watch(Path(aim.folder), on_operation)


def pass_on(aim: Aim, place: Path) -> None:
    """Let the processes that this one starts take the same aim. place: a new folder, first in their PYTHONPATH."""
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(WATCHED)
    os.environ |= {AIM: json.dumps(aim), "PYTHONPATH": f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def join() -> None:
    """In a process that was started: take the aim that was passed on."""
    take_aim(Aim(*json.loads(os.environ[AIM])))


def _kill(operation: Operation, aim: Aim) -> None:
    """End this process and those of its command at once."""
    os.killpg(0, signal.SIGKILL)


def _tear(operation: Operation, aim: Aim) -> None:
    """The same amid the write of a file that is about to be synced."""
    if operation.name == "fsync" and operation.before and os.path.isfile(operation.path):
        size = os.path.getsize(operation.path)
        kept = min(operation.kept, size)
        os.truncate(operation.path, kept + (size - kept) // 3)
    _kill(operation, aim)


def _fill(operation: Operation, aim: Aim) -> None:
    """Fill the disk on which `aim.place` lies with that file."""
    handle = os.open(aim.place, os.O_WRONLY | os.O_CREAT)
    free = os.fstatvfs(handle)
    if free.f_bavail:
        os.posix_fallocate(handle, 0, free.f_bavail * free.f_frsize)
    os.close(handle)


ACTS = {"before": _kill, "torn": _tear, "fill": _fill}
