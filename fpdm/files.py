"""Files and folders that are never seen half-written, and errors that name a damaged file."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from fpdm.locks import only_writer, only_writer_of

FIGURE_DPI = 130
WRITING = re.compile(r"\(os error (\d+)\)|PytorchStreamWriter|unexpected pos")  # in an error of safetensors or torch


@contextmanager
def replaced(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary path next to `path` to write to. It is renamed to `path` at the end, so readers find either the
    old content or the new one, also after a kill. Of two programs that write the same file, the second waits.

    sync: also after a power failure. An OSError while writing, for example on a full disk, names `path`. After an
    error, what was written is removed. safetensors' save_file puts a file of its own at the temporary path, which is
    not locked: use it in folders that are.
    """
    partial = partial_of(path)
    try:
        with only_writer_of(partial):
            try:
                with _system_errors(path):
                    yield partial
                if sync:
                    sync_to_disk(partial)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        if sync:
            sync_to_disk(path.parent)  # the name
    except OSError as error:
        if error.filename not in (None, str(partial)):  # of another file, read while this one was written
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` to fill. It is renamed to `path` at the end, so that there is a whole folder or
    none, also after a kill or a power failure.

    ValueError if `path` is there and not empty. After an error, what was written is removed. Of two programs that make
    the same folder, the second waits for the first, and is then refused.
    """
    partial = partial_of(path)
    with ExitStack() as held:
        while True:
            check_new(path)
            make_folder(partial)
            try:
                held.enter_context(only_writer(partial, wait=True))
                break
            except FileNotFoundError:  # the program before has renamed or removed its own
                continue
        try:
            check_new(path)
            for part in partial.iterdir():  # what a kill has left
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            with _system_errors(path):
                yield partial
            for part in [*partial.rglob("*"), partial]:
                sync_to_disk(part)
            os.replace(partial, path)
            sync_to_disk(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Errors of safetensors and torch while writing are OSErrors, with the path."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        found = WRITING.search(str(error))
        if found is None:
            raise
        number = int(found[1] or errno.ENOSPC)  # torch does not say which; this is the usual one
        raise OSError(number, os.strerror(number), str(path)) from error


def partial_of(path: Path) -> Path:
    """Where a file or folder is while it is being written; a kill may leave it."""
    return path.with_name(f".{path.name}.partial")


def check_new(path: Path, setting: str = "out") -> None:
    """ValueError if `path` is there and is anything but an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{setting}={path}: already exists and is not empty; choose another folder")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if needed, so that they are there after a power failure too."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in absent:
        sync_to_disk(folder.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError with its name if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not JSON, or not text at all
        raise ValueError(f"{path} is damaged ({error}); remove it, or choose another folder") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically; see `replaced`."""
    with replaced(path) as partial:
        partial.write_text(text)


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib Figure atomically, in the format that the name says, else as PNG; see `replaced`."""
    with replaced(path) as partial:
        figure.savefig(partial, dpi=FIGURE_DPI, format=path.suffix[1:] or "png")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file atomically; see `replaced`."""
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
