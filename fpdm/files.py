"""Files that are never seen half-written, and errors that name a damaged file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replaced(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary path next to `path` to write to. It is renamed to `path` at the end, so readers find either the
    old content or the new one, also after a kill.

    sync: also after a power failure. An OSError while writing, for example on a full disk, names `path`, and what was
    written is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename not in (None, str(partial)):  # of another file, read while this one was written
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError with its name if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text at all
        raise ValueError(f"{path} is damaged ({error}); remove it, or choose another folder") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically; see `replaced`."""
    with replaced(path) as partial:
        partial.write_text(text)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file atomically; see `replaced`."""
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
