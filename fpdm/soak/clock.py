"""A clock that jumps: amid a command, and between two calls of it, so that all files seem to be of other times."""

import datetime
import os
import time
from pathlib import Path
from random import Random

from fpdm.soak.children import command, start
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.whole import check, finish, uninterrupted
from fpdm.soak.work import Work

YEAR = 365 * 86400
AHEAD = 0.5  # share of jumps forwards


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """The clock jumps amid the command, which is then killed; all files get random times of two years; then the same
    command to its end, with another jump."""
    name = draw.choice(list(works))
    work, seconds = works[name], uninterrupted(name, works[name], material)["seconds"]
    jumps = [draw.uniform(60, YEAR) * (1 if draw.random() < AHEAD else -1) for _ in range(2)]
    moment = draw.uniform(0, seconds)
    children = start(command(work.words(material, folder)), folder.with_suffix(".txt"), work.processes,
                     lambda rank: jump(jumps[0], moment / 2))  # fmt: skip
    time.sleep(moment)
    killed = not children.look()
    children.kill()
    ended = children.wait(work.limit)
    if not killed and not ended.well:
        raise Lost(f"it failed: {ended.statuses} {ended.said[-1500:]}")
    check(work.intact, folder)
    touched = shuffle(folder, draw)
    finish(name, work, material, folder, lambda rank: jump(jumps[1], seconds / 2))
    outcome = "equal after a kill and wrong times of files" if killed and touched else "equal"
    return Round(
        name, outcome, {"work": name, "jumps": jumps, "moment": moment, "files": touched, "killed": int(killed)}
    )


def jump(by: float, after: float) -> None:
    """Let the clock that this process sees jump by so many seconds, `after` seconds from now."""
    begun, real, real_ns = time.monotonic(), time.time, time.time_ns

    def off() -> float:
        return by if time.monotonic() > begun + after else 0.0

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(seconds=off())

    time.time = lambda: real() + off()
    time.time_ns = lambda: real_ns() + int(off() * 1e9)
    datetime.datetime = Jumping


def shuffle(folder: Path, draw: Random) -> int:
    """Give each file and folder a time of its own, up to a year from now in the past or in the future."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        when = time.time() + draw.uniform(-YEAR, YEAR)
        os.utime(path, (when, when), follow_symlinks=False)
    return len(paths)
