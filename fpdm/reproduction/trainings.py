"""Runs of train.py: each is started once, resumed where it was stopped, and several run at a time."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import ROOT, Task, last_line, run_scripts
from fpdm.files import write_atomically
from fpdm.records import check_fields, read_object
from fpdm.training.checkpoint import find_checkpoint, step_of
from fpdm.training.loop import TrainingDiverged
from fpdm.training.runlog import has_run, latest_run

SHARE = 5  # a cool-down is a fifth of the steps


class Training(NamedTuple):
    """A run of train.py. arguments: all but its name and its number of steps."""

    name: str
    steps: int
    arguments: tuple

    def cooled(self) -> "Training":
        """The same, cooled down over its last steps."""
        return self._replace(arguments=(*self.arguments, "--optim.cooldown", self.steps // SHARE))

    def forked(self, run: Path) -> "Training":
        """The same, cooled down, from the checkpoint of a longer run at which the cool-down begins."""
        start = self.steps - self.steps // SHARE
        cooled = self.cooled()
        return cooled._replace(arguments=(*cooled.arguments, "--fork", run / "checkpoints" / f"{start:07d}"))


class Trainings:
    """The runs in a folder. jobs: trainings at a time; deadline: on time.monotonic()'s clock.

    A run that diverged (`TrainingDiverged`) is noted in out/diverged, and is not started again: it would do the same.
    """

    def __init__(self, out: Path, jobs: int, deadline: float | None):
        self.runs, self.logs, self.jobs, self.deadline = out / "runs", out / "logs", jobs, deadline
        self.diverged = out / "diverged"

    def train(self, trainings: Iterable[Training]) -> list[Path]:
        """The folders of these runs, in their order; those that are not finished are trained now. ValueError if one
        diverges."""
        trainings = list(trainings)
        runs = self.attempt(trainings)
        bad = [training.name for training, run in zip(trainings, runs, strict=True) if run is None]
        if bad:
            raise ValueError(f"{', '.join(bad)}: the training diverged; {self.diverged} says how")
        return runs

    def attempt(self, trainings: Iterable[Training]) -> list[Path | None]:
        """The same, with None for each run that diverges."""
        trainings = list(trainings)
        self.logs.mkdir(parents=True, exist_ok=True)
        tasks = [
            Task("train.py", (*run.arguments, "--run.results", self.runs, "--run.name", run.name, "--optim.steps",
                              run.steps, "--resume", "auto"), self.logs / f"{run.name}.log",
                 TrainingDiverged.exit_status)
            for run in trainings
            if not self._has_diverged(run) and finished_run(self.runs, run.name, run.steps) is None
        ]  # fmt: skip
        steps = {run.name: run.steps for run in trainings}
        for task in run_scripts(tasks, self.jobs, self.deadline):
            note = {"steps": steps[task.log.stem], "said": last_line(task.log)}
            self.diverged.mkdir(exist_ok=True)
            write_atomically(self.diverged / f"{task.log.stem}.json", json.dumps(note))
        return [None if self._has_diverged(run) else self.find(run.name) for run in trainings]

    def _has_diverged(self, run: Training) -> bool:
        path = self.diverged / f"{run.name}.json"
        if not path.exists():
            return False
        note = read_object(path)
        check_fields(path, note, {"steps": int, "said": str}, ["steps"])
        return note["steps"] == run.steps

    def find(self, name: str) -> Path:
        """The newest run of this name that has a checkpoint; FileNotFoundError if there is none."""
        return latest_run(str(self.runs), name)


def finished_run(runs: Path, name: str, steps: int) -> Path | None:
    """The folder in `runs` of the newest run of this name, if it was trained for so many steps."""
    if not has_run(str(runs), name):
        return None
    run = latest_run(str(runs), name)
    return run if step_of(find_checkpoint(run)) == steps else None


def config_path(folder: str, name: str) -> Path:
    """configs/<folder>/<name>.yaml as a user would type it."""
    return Path(os.path.relpath(ROOT / "configs" / folder / f"{name}.yaml"))
