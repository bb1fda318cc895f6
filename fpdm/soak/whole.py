"""The comparison of every experiment: the same command to its end, against one that was not interrupted."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fpdm.soak.children import Ended, command, run
from fpdm.soak.material import Material
from fpdm.soak.moments import Aim, pass_on, take_aim
from fpdm.soak.outcome import Lost
from fpdm.soak.results import Saved, logged, lost_between, saved, steps_again
from fpdm.soak.work import Work


def finish(
    name: str, work: Work, material: Material, folder: Path, before: Callable | None = None, apart: tuple[str, ...] = ()
) -> None:
    """Run the command to its end in a folder that an interrupted one has left.

    Lost if it fails, if it loses or repeats what was saved, or if the result differs. before: for the child. apart:
    parts of the result that are not compared.
    """
    go_on(work, material, folder, folder.with_suffix(".txt"), before)
    check(work.intact, folder)
    found, expected = result_of(work, folder), uninterrupted(name, work, material)["result"]
    for part in apart:
        del found[part], expected[part]
    if found != expected:
        names = [part for part in {**found, **expected} if found.get(part) != expected.get(part)]
        raise Lost(f"{', '.join(names[:5])} differ from the uninterrupted ones; found "
                   f"{str(found.get(names[0]))[:700]} instead of {str(expected.get(names[0]))[:700]}")  # fmt: skip


def go_on(work: Work, material: Material, folder: Path, said: Path, before: Callable | None = None) -> None:
    """The same command again; Lost if it fails, or loses or repeats what was saved."""
    was, lengths = saved_in(folder), logged(folder)
    ended = run(command(work.words(material, folder)), said, work.limit, processes=work.processes, before=before)
    if not ended.well and not refused_as_done(ended):
        raise Lost(f"the same command does not finish it: {ended.statuses} {ended.said[-1500:]}")
    if wrong := lost_between(was, saved_in(folder)) or steps_again(was, lengths):
        raise Lost(f"what was saved was lost or made again: {', '.join(wrong[:5])}")


def saved_in(folder: Path) -> Saved:
    """`saved`, computed in a child, so that this process stays one that has computed nothing."""
    return _in_child(partial(saved, folder), folder)


def refused_as_done(ended: Ended) -> bool:
    """Whether a command that makes its whole result at once says that the result is there."""
    return ended.statuses == [2] and "already exists and is not empty" in ended.said


def uninterrupted(name: str, work: Work, material: Material) -> dict:
    """Result, seconds and operations on files (a text per process, see Aim) of the work; made once and kept."""
    place = whole_folder(name, material)
    kept = place.with_suffix(".json")
    if not kept.exists():
        for old in place.parent.glob(f"{place.name}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        place.mkdir(parents=True)
        aims = [Aim(str(place), f"{place}.count-{rank}") for rank in range(work.processes)]
        ended = run(command(work.words(material, place)), place.with_suffix(".txt"), work.limit,
                    processes=work.processes, before=lambda rank: aim(work, place, aims[rank]))  # fmt: skip
        if not ended.well:
            raise Lost(f"{name}, not interrupted: {ended.statuses} {ended.said[-2000:]}")
        operations = [Path(one.counted).read_text() for one in aims]
        facts = {"operations": operations, "seconds": ended.seconds, "result": result_of(work, place)}
        partial_file = kept.with_suffix(".partial")
        partial_file.write_text(json.dumps(facts))
        os.replace(partial_file, kept)
    return json.loads(kept.read_text())


def whole_folder(name: str, material: Material) -> Path:
    return material.whole / name.replace(" ", "-").replace(",", "")


def aim(work: Work, folder: Path, at: Aim, noted: Callable[[], None] = lambda: None) -> None:
    """In a child: take an aim, and pass it on to the processes that the command starts."""
    if work.family:
        pass_on(at, folder.with_suffix(".site"))
    take_aim(at, noted)


def result_of(work: Work, folder: Path) -> dict:
    return _in_child(partial(work.result, folder), folder)


def _in_child(find: Callable[[], dict], folder: Path) -> dict:
    into = folder.with_suffix(".result")
    ended = run(lambda: into.write_text(json.dumps(find())), folder.with_suffix(".said"))
    if not ended.well:
        raise Lost(f"what is left cannot be read: {ended.said[-1500:]}")
    return json.loads(into.read_text())


def check(intact: Callable[[Path], None], folder: Path) -> None:
    """`intact` in a child; Lost with what it says."""
    ended = run(partial(intact, folder), folder.with_suffix(".said"))
    if not ended.well:
        raise Lost(f"what is left is not whole: {ended.said[-1500:]}")
