"""Small files that are never seen half-written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write beside, sync and rename: a reader, a kill or a power cut finds the old content or the new."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # of a full disk, say, which does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
