"""One of two processes of a command is killed, hangs, or is slow. The other ends in time, in one line; the same command
then finishes."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from random import Random

import torch

from fpdm.soak.children import HUNG, command, start
from fpdm.soak.kills import check, finish, uninterrupted
from fpdm.soak.outcome import Lost, Round
from fpdm.soak.works import Material, Work

PATIENCE = 15  # seconds that a process waits for the other here; docs/reliability.md has the times of a real one
GRACE = 20  # seconds, on a machine with other work, until a process has noticed and ended


def play(works: dict[str, Work], material: Material, draw: Random, folder: Path) -> Round:
    """kill: SIGKILL. hang: SIGSTOP for good. slow: SIGSTOP for a while."""
    name = draw.choice(list(works))
    work, way, rank = works[name], draw.choice(("kill", "hang", "slow")), draw.randrange(2)
    moment = draw.uniform(0.1, uninterrupted(name, work, material)["seconds"])
    words = work.words(material, folder)
    children = start(command(words), folder.with_suffix(".txt"), work.processes, lambda _: impatient())
    time.sleep(moment)
    late = not children.look()
    if late:
        hit = children.pids[rank]
        os.kill(hit, signal.SIGKILL if way == "kill" else signal.SIGSTOP)
        if way == "slow":
            time.sleep(draw.uniform(0.1, PATIENCE / 3))
            os.kill(hit, signal.SIGCONT)
        else:
            _other_ends(children, rank, way)
    ended = children.wait(work.limit)
    if "Traceback" in ended.said or ("error:" not in ended.said and not ended.well and late and _was_waiting(ended)):
        raise Lost(f"not one line: {ended.statuses} {ended.said[-2500:]}")
    if way == "slow" and not ended.well:
        raise Lost(f"one was slow, and it failed: {ended.statuses} {ended.said[-1500:]}")
    check(work.intact, folder)
    finish(name, work, material, folder)
    outcome = f"{way}: the other ends, equal after it" if way != "slow" else "slow: equal"
    return Round(name, outcome, {"work": name, "way": way, "rank": rank, "moment": moment})


def impatient() -> None:
    """Let this process wait a few seconds for the other, instead of minutes or hours."""
    original = torch.distributed.init_process_group

    def init(*arguments, **settings):
        return original(*arguments, **settings | {"timeout": timedelta(seconds=PATIENCE)})

    torch.distributed.init_process_group = init


def _other_ends(children, rank: int, way: str) -> None:
    """Wait until the other process has ended; Lost if it does not. A process that hangs is then killed."""
    other, deadline = children.pids[1 - rank], time.monotonic() + PATIENCE + GRACE
    while other not in children.statuses and time.monotonic() < deadline:
        children.look()
        time.sleep(0.01)
    if other not in children.statuses:
        raise Lost(f"{way}: the other still waits after {PATIENCE + GRACE} s")
    if way == "hang":
        os.kill(children.pids[rank], signal.SIGKILL)


def _was_waiting(ended) -> bool:
    """Whether a process ended by itself because the other was lost."""
    return HUNG not in ended.statuses and any(status > 0 for status in ended.statuses)
