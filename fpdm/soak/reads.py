"""A read that fails, and a file that is gone when it is read, of a command's input or of what it wrote before.

Every file that is opened to be read is counted: by Python's open, or by safetensors, whose own code opens it. A read
error comes at the opening, or at the first read after it; only at the opening for files that are mapped into memory
(shards, weights, torch's files).
"""

import builtins
import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

import safetensors

from fpdm.soak.children import command, run
from fpdm.soak.ends import told
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.whole import check, finish, uninterrupted
from fpdm.soak.work import Work

MAPPED = (".safetensors", ".pt", ".bin", ".f32")
GONE = ".vanished"
WAYS = ("fails at the opening", "fails at a read", "has vanished")


class FailingFile(io.FileIO):
    """A file that can be opened and not read."""

    failed: Path  # file that tells of it

    def readinto(self, buffer):
        self.failed.write_text(str(self.name))
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.name))

    def readall(self):
        return self.readinto(None)

    def read(self, size=-1):
        return self.readinto(None)


class Reads:
    """The reads of a process below some folders. counted: file that gets a character for each. at, way: of the read
    that fails. failed: file for the name of what failed."""

    def __init__(self, folders: tuple[Path, ...], counted: Path, at: int | None = None, way: str = ""):
        self.roots = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
        self.counted, self.at, self.way, self.failed = counted, at, way, counted.with_suffix(".failed")
        self.number = 0

    def watch(self, rank: int) -> None:
        """For `before` of a child."""
        really, opener = io.open, safetensors.safe_open
        handle = os.open(self.counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def is_hit(path: str) -> bool:
            """Count a read; whether it is the one that fails in Python's own code."""
            os.write(handle, b".")
            self.number += 1
            if self.number - 1 != self.at:
                return False
            if self.way == "fails at a read" and not path.endswith(MAPPED):
                return True
            self.failed.write_text(path)
            if self.way != "has vanished":
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            os.rename(path, f"{path}{GONE}")
            return False

        def opened(file, mode="r", buffering=-1, encoding=None, *words, **named):
            if not self._is_read(file, mode) or not is_hit(os.path.abspath(os.fspath(file))):
                return really(file, mode, buffering, encoding, *words, **named)
            failing = FailingFile(os.fspath(file))
            failing.failed = self.failed
            return io.BufferedReader(failing) if "b" in mode else io.TextIOWrapper(io.BufferedReader(failing), encoding)

        def opened_weights(file, *words, **named):
            if self._is_read(file, "r"):
                is_hit(os.path.abspath(os.fspath(file)))
            return opener(file, *words, **named)

        builtins.open = io.open = opened
        for module in list(sys.modules.values()):  # wherever it was imported to
            with suppress(Exception):
                for name in [name for name, value in vars(module).items() if value is opener]:
                    setattr(module, name, opened_weights)

    def _is_read(self, file, mode: str) -> bool:
        if not isinstance(file, (str, os.PathLike)) or set(mode) & set("wax+"):
            return False
        path = os.path.abspath(os.fspath(file))
        return path.startswith(self.roots) and os.path.isfile(path)


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """One fault of one of the works; then the same command without it, compared with an uninterrupted one."""
    name, way = draw.choice(list(works)), draw.choice(WAYS)
    work, inputs = works[name], Material(material.folder / "inputs")  # of its own: its files vanish and come back
    _restore(inputs.folder)
    uninterrupted(name, work, inputs)
    words, out = work.words(inputs, folder / "out"), folder / "out"
    number = draw.randrange(_number_of_reads(name, work, inputs))
    reads = Reads((inputs.folder, out), folder.with_suffix(".reads"), number, way)
    out.mkdir()
    ended = run(command(words), folder.with_suffix(".txt"), work.limit, before=reads.watch)
    outcome = told(ended, work)
    path = reads.failed.read_text() if reads.failed.exists() else ""
    if path and outcome != "finished" and not any(part in ended.errors[0] for part in os.path.split(path)):
        raise Lost(f"the line does not name {path}, which {way}: {ended.errors[0]}")
    _restore(inputs.folder)
    _restore(folder)
    check(work.intact, out)
    finish(name, work, inputs, out)
    found = f"{outcome}, then equal" if path else "was not read again, equal"
    return Round(f"{name}: a file {way}", found, {"work": name, "way": way, "operation": number, "path": path})


def _number_of_reads(name: str, work: Work, inputs: Material) -> int:
    """How many files the work reads; counted once."""
    counted = inputs.whole / f"{name.replace(' ', '-')}.reads"
    if not counted.exists():
        out = counted.with_suffix(".read-folder")
        out.mkdir()
        partial = counted.with_suffix(".partial")
        reads = Reads((inputs.folder,), partial)
        ended = run(command(work.words(inputs, out)), counted.with_suffix(".read-said"), work.limit, before=reads.watch)
        if not ended.well:
            raise Lost(f"{name}, its reads counted: {ended.statuses} {ended.said[-1500:]}")
        os.replace(partial, counted)
    return counted.stat().st_size


def _restore(folder: Path) -> None:
    """Give the files that had vanished their names again, unless there are new ones."""
    for path in folder.rglob(f"*{GONE}"):
        whole = path.with_name(path.name.removesuffix(GONE))
        if whole.exists():
            path.unlink()
        else:
            path.rename(whole)
