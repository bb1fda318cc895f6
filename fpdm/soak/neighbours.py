"""One of two processes of a command is killed, hangs, or is slow. The other ends in time, in one line; the same command
then finishes."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch

from fpdm.soak.children import Children, command, start
from fpdm.soak.ends import LOST_NEIGHBOUR
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.whole import check, finish, uninterrupted
from fpdm.soak.work import Work

PATIENCE = 15  # seconds that a process waits for the other here; docs/reliability.md has the times of a real one
HAD_ENDED = "had ended before"
TOGETHER = "waiting for clients"  # said by torch if not all processes have come together in time
GRACE = 20  # seconds, on a machine with other work, until a process has noticed and ended


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """kill: SIGKILL. hang: SIGSTOP for good. slow: SIGSTOP for a while."""
    name = draw.choice(list(works))
    work, way, rank = works[name], draw.choice(("kill", "hang", "slow")), draw.randrange(2)
    moment = draw.uniform(0.1, uninterrupted(name, work, material)["seconds"])
    did = {"work": name, "way": way, "rank": rank, "moment": moment, "killed": 0}
    words = work.words(material, folder)
    children = start(command(words), folder.with_suffix(".txt"), work.processes, lambda _: impatient())
    time.sleep(moment)
    children.look()
    if children.pids[rank] in children.statuses:
        outcome = HAD_ENDED
    elif way == "slow":
        outcome = _slow(children, rank, work.limit, draw.uniform(0.1, PATIENCE / 3))
    else:
        outcome = _other_ends(children, rank, way)
        did["killed"] = 1
    ended = children.wait(work.limit)
    if outcome == HAD_ENDED and not ended.well:
        raise Lost(f"it failed: {ended.statuses} {ended.said[-1500:]}")
    if "Traceback" in ended.said:
        raise Lost(f"not one line: {ended.statuses} {ended.said[-2500:]}")
    check(work.intact, folder)
    finish(name, work, material, folder)
    return Round(name, f"{way}: {outcome}, equal after it", did)


def impatient() -> None:
    """Let this process wait a few seconds for the other, instead of minutes or hours."""
    original = torch.distributed.init_process_group

    def init(*arguments, **settings):
        return original(*arguments, **settings | {"timeout": timedelta(seconds=PATIENCE)})

    torch.distributed.init_process_group = init


def _slow(children: Children, rank: int, limit: float, seconds: float) -> str:
    os.kill(children.pids[rank], signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(children.pids[rank], signal.SIGCONT)
    ended = children.wait(limit)
    if not ended.well:
        raise Lost(f"one was slow, and it failed: {ended.statuses} {ended.said[-1500:]}")
    return "both finish"


def _ends_by(children: Children, pid: int, deadline: float) -> bool:
    while pid not in children.statuses and time.monotonic() < deadline:
        children.look()
        time.sleep(0.01)
    return pid in children.statuses


def _other_ends(children: Children, rank: int, way: str) -> str:
    """Lose one process; Lost unless the other ends in time, in one line or because it has done its part, and leaves no
    process behind."""
    hit, other = children.pids[rank], children.pids[1 - rank]
    os.kill(hit, signal.SIGKILL if way == "kill" else signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE + GRACE
    ends = _ends_by(children, other, deadline)
    if way == "hang" and hit in children.statuses:  # it had ended when the signal came
        return HAD_ENDED
    if way == "hang":
        os.kill(hit, signal.SIGKILL)
    # One that stops while it connects can hold up torch's store, and its timeout; see docs/reliability.md.
    held_up = not ends and way == "hang" and _ends_by(children, other, deadline + GRACE)
    if not ends and not (held_up and TOGETHER in children.said.read_text(errors="replace")):
        raise Lost(f"{way}: the other still waits after {PATIENCE + GRACE} s")
    while (left := children.left()) and time.monotonic() < deadline + GRACE:
        time.sleep(0.1)
    said = children.said.read_text(errors="replace")
    if left:
        raise Lost(f"{way}: processes {left} are left behind: {said[-1500:]}")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if children.statuses[other] == 0 and not lines:
        return "the other had done its part"
    if children.statuses[other] == LOST_NEIGHBOUR and len(lines) == 1:
        return f"the other ends in one line{', when the one that hangs is killed' * held_up}"
    raise Lost(f"{way}: not one line and exit status {LOST_NEIGHBOUR}: {children.statuses} {said[-2500:]}")
