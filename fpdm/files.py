"""Files that are never seen half-written, and an error that names the one that is damaged all the same."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replaced(path: Path, sync: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it in the end, so a reader or a kill finds the old content or the
    new one.

    sync: also after a power cut. An OSError of writing, of a full disk say, names `path`. What was
    written is removed where it fails.
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
    """What a JSON file holds; ValueError, which names it, where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text at all
        raise ValueError(f"{path} is damaged ({error}); remove it, or choose another folder") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text whole; see `replaced`."""
    with replaced(path) as partial:
        partial.write_text(text)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz whole; see `replaced`."""
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
