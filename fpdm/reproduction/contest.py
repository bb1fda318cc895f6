"""Networks that are trained for equal time: each with a learning rate of its own, and scored at several lengths.

A network's run has a constant learning rate, with checkpoints and validations at fifteenths of its steps, and cools
down over its last fifth. Forks of it cool down earlier, so one run gives a third, two thirds and the whole of the time.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import ROOT, Task, run_scripts
from fpdm.chain.equal_time import steps_for_equal_time
from fpdm.training.checkpoint import find_checkpoint, has_checkpoint, step_of

PARTS = 15  # of a run's steps
THIRDS = (1, 2, 3)  # lengths at which a network is scored
COOLDOWN = 5  # a fifth of each length is the cool-down
TRIED = "[1,2,4,8,12]"  # iterations at which the trials of an FPDM measure its loss


class Entrant(NamedTuple):
    """A network of the contest. config: a file in the contest's configs; arguments: further ones of train.py; seeds:
    number of training seeds; variants: arguments of which a trial chooses the best, by name."""

    label: str
    config: str
    arguments: tuple = ()
    seeds: int = 1
    variants: dict[str, tuple] | None = None


class Trial(NamedTuple):
    """A short training. loss: on held-out latents at its end, of the averaged weights; steps: all of them."""

    name: str
    loss: float
    steps: int


class Contest:
    """Trains the entrants; every training is started once, and resumed where it was stopped.

    configs: folder in configs/. common: arguments of train.py for all. seconds: training time of each; trial_seconds:
    of each trial. rates: learning rates that are tried. at_once: trainings at a time. All files are in `out`.
    """

    def __init__(
        self, entrants: dict[str, Entrant], configs: str, common: tuple, out: Path, seconds: float,
        trial_seconds: float, rates: tuple[float, ...], at_once: int, deadline: float | None,
    ):  # fmt: skip
        self.entrants, self.configs, self.common, self.out = entrants, configs, common, out
        self.seconds, self.trial_seconds, self.rates = seconds, trial_seconds, rates
        self.at_once, self.deadline = at_once, deadline
        for folder in (out / "logs", out / "runs"):
            folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> dict[str, int]:
        """Steps of each entrant, and of each variant (as entrant-variant), in `seconds`: multiples of PARTS."""
        arguments = {}
        for name, entrant in self.entrants.items():
            for variant in entrant.variants or {"": ()}:
                arguments[f"{name}-{variant}".strip("-")] = self._arguments(name, variant, 0)
        steps = steps_for_equal_time(self.out / "steps.json", self.seconds, arguments, self.deadline, self.at_once)
        return {name: max(count // PARTS, 1) * PARTS for name, count in steps.items()}

    def variant_trials(self, name: str) -> list[Trial]:
        """Of each variant of an entrant, with the middle one of the rates."""
        rate = self.rates[len(self.rates) // 2]
        return self._trials([(name, variant, rate) for variant in self.entrants[name].variants or {}])

    def variant(self, name: str) -> str:
        """The best variant of an entrant; empty if it has none."""
        trials = self.variant_trials(name)
        if not trials:
            return ""
        return list(self.entrants[name].variants)[min(range(len(trials)), key=lambda i: trials[i].loss)]

    def rate_trials(self, names: Iterable[str]) -> dict[str, list[Trial]]:
        """Of each rate, for each entrant with its best variant; none if there is only one rate."""
        if len(self.rates) == 1:
            return {}
        wanted = [(name, self.variant(name), rate) for name in names for rate in self.rates]
        found = iter(self._trials(wanted))
        return {name: [next(found) for _ in self.rates] for name in names}

    def rate(self, name: str) -> float:
        """The learning rate of an entrant: the one with the lowest loss in its trial, or the only one."""
        if len(self.rates) == 1:
            return self.rates[0]
        trials = self.rate_trials([name])[name]
        return self.rates[min(range(len(trials)), key=lambda i: trials[i].loss)]

    def train(self) -> None:
        """All trials, all entrants with all seeds, then the forks."""
        for name in self.entrants:
            self.variant_trials(name)
        self.rate_trials(self.entrants)
        pairs = sorted(((seed, name) for name, e in self.entrants.items() for seed in range(e.seeds)),
                       key=lambda pair: pair[0])  # fmt: skip
        self._run([self._training(name, seed, 3) for seed, name in pairs])
        self._run([self._training(name, seed, third) for seed, name in pairs for third in THIRDS[:-1]])

    def run(self, name: str, seed: int = 0, third: int = 3) -> Path:
        """Folder of an entrant's run that has cooled down at this length. FileNotFoundError if it is not trained."""
        return find_run(self.out / "runs", _run_name(name, seed, third))

    def _training(self, name: str, seed: int, third: int) -> Task | None:
        variant = self.variant(name)
        whole = self.steps()[f"{name}-{variant}".strip("-")]
        part, steps = whole // PARTS, whole * third // 3
        words = [*self._arguments(name, variant, seed), "--optim.lr", self.rate(name), "--optim.steps", steps,
                 "--optim.cooldown", steps // COOLDOWN, "--run.name", _run_name(name, seed, third),
                 "--run.validate_every", part, "--run.checkpoint_every", part, "--run.keep_last", 1,
                 "--run.keep_every", 4 * part]  # fmt: skip
        if third < 3:
            start = steps - steps // COOLDOWN
            words += ["--fork", self.run(name, seed) / "checkpoints" / f"{start:07d}"]
        return self._task(_run_name(name, seed, third), steps, words)

    def _trials(self, wanted: list[tuple[str, str, float]]) -> list[Trial]:
        tasks, steps, names = [], [], []
        for name, variant, rate in wanted:
            label = f"{name}-{variant}".strip("-")
            count = max(round(self.steps()[label] * self.trial_seconds / self.seconds), COOLDOWN)
            run = f"trial-{label}-{rate:g}"
            words = [*self._arguments(name, variant, 0), "--optim.lr", rate, "--optim.steps", count,
                     "--optim.cooldown", count // COOLDOWN, "--run.name", run, "--run.validate_every", count,
                     "--validation.reference", "null", "--validation.iterations", TRIED,
                     "--run.checkpoint_every", count]  # fmt: skip
            tasks.append(self._task(run, count, words))
            steps.append(count)
            names.append(run)
        self._run(tasks)
        found = (validations(find_run(self.out / "runs", name))[-1]["val_loss"] for name in names)
        return [Trial(*facts) for facts in zip(names, found, steps, strict=True)]

    def _arguments(self, name: str, variant: str, seed: int) -> list:
        entrant = self.entrants[name]
        config = Path(os.path.relpath(ROOT / "configs" / self.configs / f"{entrant.config}.yaml"))
        more = (entrant.variants or {}).get(variant, ())
        return ["--config", config, *self.common, "--run.results", self.out / "runs", "--run.seed", seed,
                *entrant.arguments, *more]  # fmt: skip

    def _task(self, name: str, steps: int, words: list) -> Task | None:
        """The training, or None if it is done."""
        try:
            if step_of(find_checkpoint(find_run(self.out / "runs", name))) == steps:
                return None
        except FileNotFoundError:
            pass
        return Task("train.py", (*words, "--resume", "auto"), self.out / "logs" / f"{name}.log")

    def _run(self, tasks: list[Task | None]) -> None:
        run_scripts([task for task in tasks if task is not None], self.at_once, self.deadline)


def find_run(results: Path, name: str) -> Path:
    """The run of this name that has a checkpoint; FileNotFoundError if there is none."""
    found = [path for path in sorted(results.glob(f"*-{name}")) if path.name.split("-", 1)[1] == name]
    found = [path for path in found if has_checkpoint(path)]
    if not found:
        raise FileNotFoundError(f"{results}: no run named {name} with a checkpoint")
    return found[-1]


def validations(run: Path) -> list[dict]:
    """The lines of a run's log with a validation."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "val_loss" in line]


def _run_name(name: str, seed: int, third: int) -> str:
    return f"{name}-seed{seed}" if third == 3 else f"{name}-seed{seed}-{third}-of-3"
