"""SIGTERM, SIGINT and SIGUSR1: training ends with a checkpoint, other commands at once."""

import re
import signal
import time
from pathlib import Path

from fpdm.soak.children import HUNG, Ended, command, start
from fpdm.soak.ends import LOST_NEIGHBOUR
from fpdm.soak.material import STEPS, Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.results import runs_of
from fpdm.soak.whole import check, finish, result_of, uninterrupted
from fpdm.soak.work import Work
from fpdm.training.checkpoint import find_checkpoint, step_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AT_ONCE = 30  # seconds, on a machine with much other work
TOLD = re.compile(r"stopped by .* after step (\d+) of (\d+), checkpoint written; resume with --resume (\S+)")


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """One signal at a random moment."""
    name = draw.choice(list(works))
    work, sent = works[name], draw.choice(SIGNALS)
    moment = draw.uniform(0, uninterrupted(name, work, material)["seconds"])
    words = work.words(material, folder)
    children = start(command(words), folder.with_suffix(".txt"), work.processes)
    time.sleep(moment)
    did = {"work": name, "sent": sent.name, "moment": moment}
    if children.look():
        finish(name, work, material, folder)
        return Round(name, "ended before the signal", did)
    children.kill(sent)
    at = time.monotonic()
    ended = children.wait(work.limit)
    took = time.monotonic() - at
    if "Traceback" in ended.said or HUNG in ended.statuses:
        raise Lost(f"{sent.name} after {moment:.2f} s: {ended.statuses} {ended.said[-1500:]}")
    check(work.intact, folder)
    outcome = _of_training(ended, folder, sent) if words[0] == "train" else None
    apart = ("checkpoints",) if outcome else ()  # the one that the signal asked for may be among the last ones kept
    if outcome is None:
        outcome = _at_once(ended, name, work, material, folder, sent, took)
    finish(name, work, material, folder, apart=apart)
    return Round(name, f"{sent.name}: {outcome}", did)


def _of_training(ended: Ended, folder: Path, sent: signal.Signals) -> str | None:
    """What training did at the signal; None if it had not begun, or was over."""
    found = TOLD.search(ended.said)
    if found is not None:
        step, run = int(found[1]), Path(found[3])
        if not ended.well or step_of(find_checkpoint(run)) != step:
            raise Lost(f"{sent.name}: said {found[0]}, with {ended.statuses} and {find_checkpoint(run)}")
        if (run / "log.jsonl").read_text().count("\n") != step:
            raise Lost(f"{sent.name}: the log does not end at step {step}")
        return "stopped with a checkpoint"
    runs = runs_of(folder)
    last = step_of(find_checkpoint(runs[-1])) if runs else 0
    begun = any(path.stat().st_size for path in folder.glob("runs/*/log.jsonl"))
    if begun and last != STEPS:
        raise Lost(f"{sent.name} after training had begun, and no checkpoint for it: {ended.statuses}, step {last}; "
                   f"{ended.said[-1500:]}")  # fmt: skip
    return None


def _at_once(
    ended: Ended, name: str, work: Work, material: Material, folder: Path, sent: signal.Signals, took: float
) -> str:
    """A command that is not training, or not yet, or not any more: it ends by the signal, or it had its result."""
    by_signal = {-sent, 130} if sent == signal.SIGINT else {-sent}
    allowed = by_signal | {0} | ({LOST_NEIGHBOUR} if work.processes > 1 else set())
    if not set(ended.statuses) <= allowed:
        raise Lost(f"{sent.name}: {ended.statuses} {ended.said[-1500:]}")
    if took > AT_ONCE:
        raise Lost(f"{sent.name}: ended only after {took:.1f} s")
    if ended.well:
        if result_of(work, folder) != uninterrupted(name, work, material)["result"]:
            raise Lost(f"{sent.name}: exit status 0 without the whole result: {ended.said[-1500:]}")
        return "had its whole result already"
    return "ended at once"
