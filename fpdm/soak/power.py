"""Power failures: what a disk may hold after one, made from a record of what a command did to its files.

The record has every operation on files, and before each of them all files as they then were. A file that was synced has
at least its content of then; what was written later is there in part, or not at all. The names in a folder are those at
its last sync, with none, some or all of the later changes, in their order. Each folder and each file is drawn for
itself, so a rename may be on the disk before the content of the renamed file.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from fpdm.soak.children import command, run
from fpdm.soak.material import Material
from fpdm.soak.moments import Operation, watch
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.results import runs_of
from fpdm.soak.whole import check, finish
from fpdm.soak.work import Work
from fpdm.training.checkpoint import find_checkpoint, step_of

LATEST = "latest"


class Entry(NamedTuple):
    """kind: folder, file or link. content: of a file, the name of its blob; of a link, its target."""

    kind: str
    inode: int
    content: str


class Moment(NamedTuple):
    """Before an operation, or after an fsync: all files, by their path in the folder."""

    operation: Operation
    tree: dict[str, Entry]


class Recorder:
    """Writes the record of a command's processes into `place`: record.jsonl, and blobs/ with the content of files."""

    def __init__(self, folder: Path, place: Path):
        self.folder, self.place, self._known = folder, place, {}
        (place / "blobs").mkdir(parents=True)

    def before(self, rank: int) -> None:
        """For `before` of a child."""
        watch(self.folder, self.note)

    def note(self, operation: Operation) -> None:
        with (self.place / "record.jsonl").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of two processes, each tells of what is there when it writes
            file.write(json.dumps([operation, self.tree()]) + "\n")

    def tree(self) -> dict[str, Entry]:
        found = {}
        for where, folders, files in os.walk(self.folder):
            for name in [*folders, *files]:
                path = os.path.join(where, name)
                try:
                    facts = os.lstat(path)
                    entry = self._entry(path, facts)
                except FileNotFoundError:  # removed by another thread
                    continue
                found[os.path.relpath(path, self.folder)] = entry
        return found

    def _entry(self, path: str, facts: os.stat_result) -> Entry:
        if os.path.islink(path):
            return Entry("link", facts.st_ino, os.readlink(path))
        if os.path.isdir(path):
            return Entry("folder", facts.st_ino, "")
        state = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if state not in self._known:
            content = Path(path).read_bytes()
            name = hashlib.blake2b(content, digest_size=12).hexdigest()
            if not (self.place / "blobs" / name).exists():
                (self.place / "blobs" / name).write_bytes(content)
            self._known[state] = name
        return Entry("file", facts.st_ino, self._known[state])


class Record:
    """The record of a command that ran to its end."""

    def __init__(self, place: Path, folder: Path):
        self.blobs, self.moments, self.folder = place / "blobs", [], folder
        numbers, fresh = {}, itertools.count(1)
        for line in (place / "record.jsonl").read_text().splitlines():
            operation, tree = json.loads(line)
            entries = {path: Entry(*entry) for path, entry in tree.items()}
            # The system gives the number of a file that was removed to another one, and that is not the same file.
            there = {(entry.kind, entry.inode) for entry in entries.values()}
            numbers = {key: numbers[key] if key in numbers else next(fresh) for key in sorted(there)}
            renumbered = {
                path: entry._replace(inode=numbers[entry.kind, entry.inode]) for path, entry in entries.items()
            }
            self.moments.append(Moment(Operation(*operation), renumbered))

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.folder)

    def synced(self, inode: int, at: int) -> int | None:
        """The last moment up to `at` at which the file or folder with this number had been synced."""
        for i in range(at, -1, -1):
            operation, tree = self.moments[i]
            if operation.name == "fsync" and not operation.before:
                where = self.relative(operation.path)
                if (where == "." and inode == 0) or (where in tree and tree[where].inode == inode):
                    return i
        return None

    def path_of(self, inode: int, at: int) -> str | None:
        """The path of a folder or file at a moment; inode 0 is the folder of the command itself."""
        if inode == 0:
            return "."
        return next((path for path, entry in self.moments[at].tree.items() if entry.inode == inode), None)

    def names(self, inode: int, at: int) -> dict[str, Entry]:
        """What is in a folder at a moment."""
        above = self.path_of(inode, at)
        prefix = "" if above == "." else f"{above}{os.sep}"
        tree = self.moments[at].tree
        return {path[len(prefix):]: entry for path, entry in tree.items()
                if path.startswith(prefix) and os.sep not in path[len(prefix):]}  # fmt: skip

    def restore(self, into: Path, at: int, draw: Random, inode: int = 0) -> None:
        """Write what the disk may hold of a folder after a power failure at a moment."""
        into.mkdir(exist_ok=True)
        since = self.synced(inode, at)
        there = [i for i in range(since or 0, at + 1) if self.path_of(inode, i) is not None]
        if not there:
            return
        for name, entry in self.names(inode, draw.choice((there[0], there[-1], draw.choice(there)))).items():
            if entry.kind == "link":
                (into / name).symlink_to(entry.content)
            elif entry.kind == "folder":
                self.restore(into / name, at, draw, entry.inode)
            else:
                (into / name).write_bytes(self.content(entry.inode, at, draw))

    def content(self, inode: int, at: int, draw: Random) -> bytes:
        """What may be left of a file: at least what was synced; of what was written later, a part."""
        versions = [entry.content for i in range(at + 1) for entry in [self._file(inode, i)] if entry is not None]
        if not versions:
            return b""
        since = self.synced(inode, at)
        kept = b"" if since is None else self._blob(self._file(inode, since).content)
        last = self._blob(versions[-1])
        if last == kept or draw.random() < 0.3:
            return kept
        if draw.random() < 0.3:
            return last
        begun = len(kept) if last.startswith(kept) else 0
        return last[: draw.randint(begun, len(last))]

    def _file(self, inode: int, at: int) -> Entry | None:
        return next((entry for entry in self.moments[at].tree.values() if entry.inode == inode), None)

    def _blob(self, name: str) -> bytes:
        return (self.blobs / name).read_bytes()

    def promised_step(self, at: int) -> int | None:
        """The step of the last checkpoint whose save had ended: its link was made and the folder synced."""
        for i in range(at, -1, -1):
            operation, tree = self.moments[i]
            link = tree.get(os.path.join(self.relative(operation.path), LATEST))
            if operation.name == "fsync" and not operation.before and link is not None:
                return int(link.content)
        return None


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """A power failure at one moment of one of the works, and what the same command then makes of the disk."""
    name = draw.choice(list(works))
    work = works[name]
    record = recorded(name, work, material)
    at = draw.randrange(len(record.moments))
    record.restore(folder, at, draw)
    if (step := record.promised_step(at)) is not None:
        check(partial(_at_least, step), folder)
    if work.synced:
        check(work.intact, folder)
    finish(name, work, material, folder)
    return Round(name, "equal after the failure", {"work": name, "at": at, "of": len(record.moments)})


def _at_least(step: int, folder: Path) -> None:
    """Lost if there is no checkpoint of this step or a later one: its save had ended."""
    runs = runs_of(folder)
    if not runs or step_of(find_checkpoint(runs[-1])) < step:
        raise Lost(f"checkpoint {step} had been saved, and is not there any more")


def recorded(name: str, work: Work, material: Material) -> Record:
    """The record of the work, made once and kept in the material."""
    place = material.records / name.replace(" ", "-").replace(",", "")
    folder = place / "folder"
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)  # one that was not finished
        folder.mkdir(parents=True)
        recorder = Recorder(folder, place)
        ended = run(command(work.words(material, folder)), place / "said.txt", work.limit,
                    processes=work.processes, before=recorder.before)  # fmt: skip
        if not ended.well:
            raise Lost(f"{name}, recorded: {ended.statuses} {ended.said[-1500:]}")
        (place / "done").touch()
    return Record(place, folder)
