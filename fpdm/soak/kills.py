"""SIGKILL at random moments and inside saves; then the same command again, to its end."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from random import Random

from fpdm.soak.children import Children, Ended, command, run, start
from fpdm.soak.moments import Operation, at, count
from fpdm.soak.outcome import Lost, Round
from fpdm.soak.works import Material, Work

AIMED = 0.7  # share of the kills that are aimed at an operation on files


def play(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """One kill of one of the works, one or two times in a row, and the comparison with an uninterrupted one."""
    name = draw.choices(list(works), [work.share for work in works.values()])[0]
    work, whole = works[name], uninterrupted(name, works[name], material)
    did = {"work": name, "kills": []}
    for _ in range(draw.choice((1, 1, 2))):
        aimed = draw.random() < AIMED
        way = draw.choice(("before", "torn")) if aimed else "clock"
        rank = draw.choice([rank for rank, made in enumerate(whole["operations"]) if made])
        number = draw.randrange(whole["operations"][rank])
        moment = draw.uniform(0, whole["seconds"]) if way == "clock" else number
        did["kills"].append({"way": way, "at": moment, "rank": rank})
        before = None if way == "clock" else at(folder, number, partial(_die, way), rank)
        children = start(command(work.words(material, folder)), folder.with_suffix(".txt"), work.processes, before)
        ended = _killed_at(children, moment, work.limit) if way == "clock" else children.wait(work.limit)
        if not ended.well and not ended.killed:
            raise Lost(f"it failed on its own: {ended.statuses} {ended.said[-1500:]}")
        did["kills"][-1]["killed"] = ended.killed
        check(work.intact, folder)
    finish(name, work, material, folder)
    killed = any(kill["killed"] for kill in did["kills"])
    return Round(name, "equal after the kill" if killed else "ended before the kill", did)


def finish(name: str, work: Work, material: Material, folder: Path) -> None:
    """Run the command to its end in a folder that an interrupted one has left; Lost if the result differs."""
    ended = run(command(work.words(material, folder)), folder.with_suffix(".txt"), work.limit, processes=work.processes)
    if not ended.well and not refused_as_done(ended):
        raise Lost(f"the same command does not finish it: {ended.statuses} {ended.said[-1500:]}")
    check(work.intact, folder)
    found, expected = result_of(work, folder), uninterrupted(name, work, material)["result"]
    if found != expected:
        names = [part for part in {**found, **expected} if found.get(part) != expected.get(part)]
        raise Lost(f"{', '.join(names[:5])} differ from the uninterrupted ones; found "
                   f"{str(found.get(names[0]))[:700]} instead of {str(expected.get(names[0]))[:700]}")  # fmt: skip


def refused_as_done(ended: Ended) -> bool:
    """Whether a command that makes its whole result at once says that the result is there."""
    return ended.statuses == [2] and "already exists and is not empty" in ended.said


def uninterrupted(name: str, work: Work, material: Material) -> dict:
    """Result, seconds and operations on files of the work; made once and kept in the material."""
    place = material.whole / name.replace(" ", "-").replace(",", "")
    kept = place.with_suffix(".json")
    if not kept.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        counted = place.with_suffix(".count")
        ended = run(command(work.words(material, place)), place.with_suffix(".txt"), work.limit,
                    processes=work.processes, before=count(place, counted))  # fmt: skip
        if not ended.well:
            raise Lost(f"{name}, not interrupted: {ended.statuses} {ended.said[-2000:]}")
        operations = [os.path.getsize(f"{counted}-{rank}") for rank in range(work.processes)]
        facts = {"operations": operations, "seconds": ended.seconds, "result": result_of(work, place)}
        kept.write_text(json.dumps(facts))
    return json.loads(kept.read_text())


def result_of(work: Work, folder: Path) -> dict:
    """The result, computed in a child, so that this process stays one that has computed nothing."""
    into = folder.with_suffix(".result")

    def write() -> None:
        into.write_text(json.dumps(work.result(folder)))

    ended = run(write, folder.with_suffix(".said"))
    if not ended.well:
        raise Lost(f"the result cannot be read: {ended.said[-1500:]}")
    return json.loads(into.read_text())


def check(intact, folder: Path) -> None:
    """`intact` in a child; Lost with what it says."""
    ended = run(partial(intact, folder), folder.with_suffix(".said"))
    if not ended.well:
        raise Lost(f"what is left is not whole: {ended.said[-1500:]}")


def _die(way: str, operation: Operation) -> None:
    """End this process and those of its command at once. torn: amid the write of a file that is about to be synced."""
    if way == "torn" and operation.name == "fsync" and operation.before and os.path.isfile(operation.path):
        os.truncate(operation.path, os.path.getsize(operation.path) // 3)
    os.killpg(0, signal.SIGKILL)


def _killed_at(children: Children, moment: float, limit: float) -> Ended:
    while not children.look() and time.monotonic() < children.started + moment:
        time.sleep(0.001)
    if not children.look():
        children.kill()
    return children.wait(limit)
