"""One writer at a time: a lock on a folder, which the system takes back from a process that ends, however it ends."""

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

    wait: until another holder has ended; otherwise ValueError after PATIENCE. Where the file system has no locks on
    folders (NFS), nothing is held.
    """
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle, folder, wait)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int, folder: Path, wait: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{folder}: another program is writing to this folder; wait until it has ended, or choose another "
                    "folder"
                ) from error
            time.sleep(0.1)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return
            raise
