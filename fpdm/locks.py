"""One writer at a time: a lock on a folder or a file, which the system takes back from a process that ends, however it
ends."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 10  # seconds: the workers of a killed command end some seconds after it
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOSYS}


@contextmanager
def only_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an existing folder. Nothing is written for it.

    wait: until another holder has ended; otherwise ValueError after PATIENCE. FileNotFoundError if the other holder has
    removed or renamed the folder. Where the file system has no locks on folders (NFS), nothing is held.
    """
    with _held(folder, os.O_RDONLY, wait, "another program is writing to this folder; wait until it has ended, or "
               "choose another folder"):  # fmt: skip
        yield


@contextmanager
def only_writer_of(file: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there. ValueError if another holder has it for PATIENCE."""
    with _held(file, os.O_RDWR | os.O_CREAT, False, "another program is writing this file; wait until it has ended"):
        yield


@contextmanager
def _held(path: Path, flags: int, wait: bool, refused: str) -> Iterator[None]:
    handle = None if fcntl is None else _locked(path, flags, wait, refused)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _locked(path: Path, flags: int, wait: bool, refused: str) -> int:
    """A handle with the lock of what is at the path now: the one before may have removed or renamed what it locked."""
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            if not _lock(handle, None if wait else deadline):
                raise ValueError(f"{path}: {refused}")
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, deadline: float | None) -> bool:
    """Whether the lock is held, in time, or there are no locks."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return True
            raise


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
