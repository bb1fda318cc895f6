"""A full disk, at every operation of a command that may need room on it, one after the other."""

import os
import shutil
import subprocess
from pathlib import Path

from fpdm.soak.children import Ended, command, run
from fpdm.soak.ends import told
from fpdm.soak.material import Material
from fpdm.soak.moments import Aim
from fpdm.soak.outcome import Draws, Round
from fpdm.soak.whole import aim, check, finish, go_on, uninterrupted, whole_folder
from fpdm.soak.work import Work

KIB = 1024
SAMPLED = 12  # of the studies' operations, about so many are tried


def targets(works: dict[str, Work], material: Material, upto: int | None = None) -> list[tuple[str, int]]:
    """(work, number of its operation) of all rounds; only of the first works if `upto` rounds are enough."""
    found: list[tuple[str, int]] = []
    for name, work in works.items():
        if upto is None or len(found) <= upto:
            operations = uninterrupted(name, work, material)["operations"][0]
            writes = [number for number, kind in enumerate(operations) if kind == "w"]
            every = max(len(writes) // SAMPLED, 1) if work.is_study else 1
            found += [(name, number) for number in writes[::every]]
    return found


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """The disk is full from one operation on; then there is room again."""
    chosen = targets(works, material, draw.number)
    name, number = chosen[draw.number % len(chosen)]
    work = works[name]
    disk, filler, said = folder / "disk", folder / "disk" / "filler", folder / "said.txt"
    disk.mkdir()
    _mount(disk, 4 * _size(whole_folder(name, material)) + 1024 * KIB)
    try:
        out = disk / "out"
        out.mkdir()
        at = Aim(str(out), str(folder / "counted"), number, "fill", str(filler))
        ended = run(command(work.words(material, out)), said, work.limit, before=lambda rank: aim(work, disk, at))
        outcome = _told(ended, work, full=filler.exists())
        check(lambda _: work.intact(out), folder / "beside")  # whose messages go beside the full disk
        filler.unlink(missing_ok=True)
        go_on(work, material, out, said)
        copy = folder / "copy"
        shutil.copytree(out, copy, symlinks=True)
        finish(name, work, material, copy)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return Round(name, outcome, {"work": name, "operation": number})


def _told(ended: Ended, work: Work, full: bool) -> str:
    outcome = told(ended, work)
    return f"{outcome}, then equal" if full else "not reached, equal"


def can_mount() -> bool:
    """Whether this process may mount a file system: it is root, in a machine that allows it."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _size(folder: Path) -> int:
    """Bytes of a folder in blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _mount(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "soak", str(disk)], check=True)
