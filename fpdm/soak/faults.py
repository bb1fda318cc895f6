"""Faults of a machine: a full disk, reads that fail, files that vanish, a clock that jumps, signals, and two commands
at once. A command ends in time, in one line, and the same command then finishes what it has left."""

import errno
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from fpdm.soak.children import HUNG, Ended, command, run, start
from fpdm.soak.kills import check, finish, refused_as_done, uninterrupted
from fpdm.soak.moments import Operation, at
from fpdm.soak.outcome import Lost, Round
from fpdm.soak.works import Material, Work

KIB = 1024
ENDS_OF_SIGNALS = {-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT, 130, 0}


def full_disk(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """A file system that is too small, from a few KiB to a little less than the command needs."""
    name = draw.choice(list(works))
    work, needed = works[name], _size(uninterrupted_folder(name, works[name], material))
    disk, size = folder / "disk", draw.randrange(4 * KIB, needed + 64 * KIB, 4 * KIB)
    disk.mkdir()
    _mount(disk, "-t", "tmpfs", "-o", f"size={size}", "soak")
    try:
        out = disk / "out"
        out.mkdir()
        ended = run(command(work.words(material, out)), folder / "said.txt", work.limit)
        outcome = _told(ended)
        check_beside(work, out, folder)
        _mount(disk, "-o", f"remount,size={64 * KIB**2}")
        _finish_beside(name, work, material, out, folder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return Round(name, outcome, {"work": name, "bytes": size, "needed": needed})


def can_mount() -> bool:
    """Whether this process may mount a file system: it is root, in a machine that allows it."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def check_beside(work: Work, out: Path, folder: Path) -> None:
    """The check of what is left writes its messages beside the full disk."""

    def intact(_: Path) -> None:
        work.intact(out)

    check(intact, folder / "beside")


def _finish_beside(name: str, work: Work, material: Material, out: Path, folder: Path) -> None:
    """The same command with room for all of it; then `finish` in a copy, which does not lie on that disk."""
    ended = run(command(work.words(material, out)), folder / "said.txt", work.limit)
    if not ended.well and not refused_as_done(ended):
        raise Lost(f"with room again, it does not finish: {ended.statuses} {ended.said[-1500:]}")
    copy = folder / "copy"
    shutil.copytree(out, copy, symlinks=True)
    finish(name, work, material, copy)


def uninterrupted_folder(name: str, work: Work, material: Material) -> Path:
    uninterrupted(name, work, material)
    return material.whole / name.replace(" ", "-").replace(",", "")


def _size(folder: Path) -> int:
    """Bytes of a folder in blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _mount(disk: Path, *words: str) -> None:
    subprocess.run(["mount", *words, str(disk)], check=True)


def failing_read(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """A file that cannot be read, or is gone, when the command opens it: of its input, or of what it wrote before."""
    name = draw.choice(list(works))
    work, way = works[name], draw.choice(("read error", "vanished"))
    inputs, out = Material(folder / "material"), folder / "out"
    for part in ("images", "vae", "store", "runs", "samples", "classifier"):
        shutil.copytree(getattr(material, part), getattr(inputs, part), symlinks=True)
    out.mkdir()
    gone: list[tuple[str, bytes]] = []
    number, shared = draw.randrange(60), folder.with_suffix(".gone")

    def act(operation: Operation) -> None:
        if operation.name != "open" or not os.path.isfile(operation.path):
            return
        shared.write_text(operation.path)
        if way == "read error":
            raise OSError(errno.EIO, "Input/output error", operation.path)
        os.rename(operation.path, f"{operation.path}.vanished")

    words = work.words(inputs, out)
    ended = run(command(words), folder.with_suffix(".txt"), work.limit, before=at(folder, number, act, reads=True))
    outcome = _told(ended)
    check(work.intact, out)
    for path in folder.rglob("*.vanished"):
        with suppress(OSError):
            path.rename(path.with_suffix(""))
    ended = run(command(words), folder.with_suffix(".txt"), work.limit)
    if not ended.well and not refused_as_done(ended):
        raise Lost(f"with the file again, it does not finish: {ended.statuses} {ended.said[-1500:]}")
    path = shared.read_text() if shared.exists() else ""
    return Round(name, outcome, {"work": name, "way": way, "operation": number, "path": path, "gone": len(gone)})


def clock(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """The clock of the machine jumps back by up to a year, amid the command."""
    name = draw.choice(list(works))
    work, back = works[name], draw.uniform(60, 365 * 86400)
    real, begun, after = time.time, time.monotonic(), draw.uniform(0, 2)

    def before(rank: int) -> None:
        time.time = lambda: real() - (back if time.monotonic() > begun + after else 0)

    ended = run(command(work.words(material, folder)), folder.with_suffix(".txt"), work.limit, before=before)
    if not ended.well:
        raise Lost(f"it failed: {ended.statuses} {ended.said[-1500:]}")
    finish(name, work, material, folder)
    return Round(name, "equal", {"work": name, "back": back, "after": after})


def stopped(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """SIGTERM, SIGINT or SIGUSR1 at a random moment."""
    name = draw.choice(list(works))
    work, sent = works[name], draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    moment = draw.uniform(0, uninterrupted(name, work, material)["seconds"])
    children = start(command(work.words(material, folder)), folder.with_suffix(".txt"), work.processes)
    time.sleep(moment)
    if not children.look():
        children.kill(sent)
    ended = children.wait(work.limit)
    if "Traceback" in ended.said or not set(ended.statuses) <= ENDS_OF_SIGNALS:
        raise Lost(f"{sent.name} after {moment:.2f} s: {ended.statuses} {ended.said[-1500:]}")
    check(work.intact, folder)
    finish(name, work, material, folder)
    return Round(name, f"{sent.name}: equal after it", {"work": name, "sent": sent.name, "moment": moment})


def two_at_once(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """The same command twice, the second one a little later."""
    name = draw.choice(list(works))
    work, later = works[name], draw.uniform(0, uninterrupted(name, works[name], material)["seconds"])
    words = work.words(material, folder)
    first = start(command(words), folder.with_suffix(".first.txt"))
    time.sleep(later)
    second = start(command(words), folder.with_suffix(".second.txt"))
    ends = [children.wait(work.limit) for children in (first, second)]
    outcomes = [_told(ended) for ended in ends]
    if "finished" not in outcomes:
        raise Lost(f"neither of them finished: {[ended.said[-800:] for ended in ends]}")
    check(work.intact, folder)
    finish(name, work, material, folder)
    outcome = "both finished" if outcomes[0] == outcomes[1] else "one refused"
    return Round(name, outcome, {"work": name, "later": later})


def _told(ended: Ended) -> str:
    """`finished` or `refused`; Lost unless it was one of them, in one line."""
    if HUNG in ended.statuses:
        raise Lost(f"it hangs: {ended.said[-1500:]}")
    if ended.well and "Traceback" not in ended.said:
        return "finished"
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if set(ended.statuses) != {2} or len(lines) != 1 or "Traceback" in ended.said:
        raise Lost(f"not one line: {ended.statuses} {ended.said[-2500:]}")
    return "refused in one line"
