"""SIGKILL at random moments and inside saves; then the same command again, to its end."""

import json
import os
import time
from pathlib import Path

from fpdm.soak.children import Children, Ended, command, start
from fpdm.soak.material import Material
from fpdm.soak.moments import Aim
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.results import Saved, lost_between, saved
from fpdm.soak.whole import aim, check, finish, saved_in, uninterrupted
from fpdm.soak.work import Work

AIMED = 0.7  # share of the kills that are aimed at an operation on files


def play(works: dict[str, Work], kills: tuple[int, ...], material: Material, draw: Draws, folder: Path) -> Round:
    """Some kills of one of the works in a row, and the comparison with an uninterrupted one.

    kills: numbers of kills, of which one is drawn. If it is n, each kill comes within the first 1/n of what an
    uninterrupted command does, because the one that is killed next has less left to do.
    """
    name = draw.choices(list(works), [work.share for work in works.values()])[0]
    work, whole = works[name], uninterrupted(name, works[name], material)
    did = {"work": name, "kills": [], "killed": 0}
    times = draw.choice(kills)
    for number in range(times):
        aimed = draw.random() < AIMED
        way = draw.choice(("before", "torn")) if aimed else "clock"
        rank = draw.choice([rank for rank, made in enumerate(whole["operations"]) if made])
        operation = draw.randrange(max(len(whole["operations"][rank]) // times, 1))
        moment = draw.uniform(0, whole["seconds"] / times) if way == "clock" else operation
        did["kills"].append({"way": way, "at": moment, "rank": rank})
        was = saved_in(folder) if number else {}
        high = HighWater(folder, number, was)
        aims = [Aim(str(folder), f"{folder}.count-{number}-{own}", operation if aimed and own == rank else None, way)
                for own in range(work.processes)]  # fmt: skip
        before = lambda own, aims=aims, high=high: aim(work, folder, aims[own], high.note(own))  # noqa: E731
        children = start(command(work.words(material, folder)), folder.with_suffix(".txt"), work.processes, before)
        ended = children.wait(work.limit) if aimed else _killed_at(children, moment, work.limit)
        if not ended.well and not ended.killed:
            raise Lost(f"it failed on its own: {ended.statuses} {ended.said[-1500:]}")
        did["kills"][-1]["killed"] = ended.killed
        did["killed"] += ended.killed
        if wrong := high.lost():
            raise Lost(f"was saved before the kill, and is not there: {', '.join(wrong[:5])}")
        check(work.intact, folder)
    finish(name, work, material, folder)
    return Round(name, "equal after the kill" if did["killed"] else "ended before the kill", did)


class HighWater:
    """What a command had saved at any operation before it was killed: each process notes it when it changes."""

    def __init__(self, folder: Path, number: int, before: Saved):
        self.folder, self.before, self.notes = folder, before, f"{folder}.saved-{number}"

    def note(self, rank: int):
        """For a process: a function that notes what is saved now, in one write."""
        last: Saved | None = None

        def noted() -> None:
            nonlocal last
            if (now := saved(self.folder)) != last:
                last = now
                handle = os.open(f"{self.notes}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(handle, f"{json.dumps(now)}\n".encode())
                os.close(handle)

        return noted

    def lost(self) -> list[str]:
        """What is not there any more of what was there before the command or at any of its operations."""
        now = saved_in(self.folder)
        found = lost_between(self.before, now)
        for path in self.folder.parent.glob(f"{Path(self.notes).name}-*"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    found += lost_between(json.loads(line), now)
        return sorted(set(found))


def _killed_at(children: Children, moment: float, limit: float) -> Ended:
    while not children.look() and time.monotonic() < children.started + moment:
        time.sleep(0.001)
    if not children.look():
        children.kill()
    return children.wait(limit)
