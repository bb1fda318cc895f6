"""How far a run is, and the whole of its state: saved to a checkpoint, and restored from one."""

import math
from pathlib import Path
from typing import NamedTuple

from fpdm.training.checkpoint import (
    damaged_trainer,
    load_trainer,
    point_best,
    prune_checkpoints,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from fpdm.training.meter import Meter
from fpdm.training.parts import Parts
from fpdm.training.runlog import RunLog
from fpdm.training.setup import sampling_facts

NO_BEST = {"step": 0, "score": math.inf}


class Progress(NamedTuple):
    """How far a run is. step: number of steps done; skipped: how many of them had gradients that were not finite;
    in_a_row: how many such steps came last; best: step and score of the best validation."""

    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    best: dict = NO_BEST


def save(run: Path, progress: Progress, parts: Parts, meter: Meter, log: RunLog) -> None:
    """Write a checkpoint, and delete those that are no longer kept; called on every rank."""
    accelerator, config, step, best = parts.accelerator, parts.config, progress.step, progress.best
    states, interval, solves = random_states(), meter.state(accelerator), parts.step_loss.state(accelerator)
    with meter.paused():
        if accelerator.is_main_process:
            trainer = {
                "step": step,
                "skipped": progress.skipped,
                "skipped_in_a_row": progress.in_a_row,
                **parts.learner.state(),
                "meter": interval,
                "adjoint": solves,
                "best": best,
                "random": states,
            }
            log.sync()
            facts = sampling_facts(config, parts.store)
            written = save_checkpoint(run, step, parts.learner.weights, trainer, facts)
            if config.run.keep_best and best["step"] == step:
                point_best(written)
            prune_checkpoints(run, step, config.run.keep_last, config.run.keep_every)
        accelerator.wait_for_everyone()


def restore(run: Path, checkpoint: Path | None, parts: Parts, meter: Meter) -> Progress:
    """Continue from a checkpoint, of this run or of one that it is a fork of; called on every rank."""
    if checkpoint is None:
        return Progress()
    trainer = load_trainer(checkpoint)
    parts.learner.restore(trainer, checkpoint)
    with damaged_trainer(checkpoint):
        meter.load(trainer["meter"])
        parts.step_loss.load(trainer.get("adjoint"), parts.accelerator)  # older checkpoints have none
        restore_random_states(trainer["random"], parts.accelerator.process_index)
        # A fork has a best of its own; older checkpoints have none.
        best = trainer.get("best", NO_BEST) if checkpoint.parent.parent == run else NO_BEST
        return Progress(trainer["step"], trainer["skipped"], trainer["skipped_in_a_row"], best)
