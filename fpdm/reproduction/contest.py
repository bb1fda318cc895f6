"""Networks that are trained for equal time: each with a learning rate of its own, and scored at several lengths.

A network's run has a constant learning rate, with checkpoints and validations at fifteenths of its steps, and cools
down over its last fifth. Forks of it cool down earlier, so one run gives a third, two thirds and the whole of the time.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fpdm.chain.equal_time import steps_for_equal_time
from fpdm.records import read_lines
from fpdm.reproduction.rates import DIVERGED, best_rate, try_rates
from fpdm.reproduction.trainings import SHARE, Training, Trainings, config_path

PARTS = 15  # of a run's steps; forks begin at 4 and 8 of them
THIRDS = (1, 2, 3)  # lengths at which a network is scored
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
    """A short training. rate: its learning rate; loss: on held-out latents at its end, of the averaged weights;
    DIVERGED if there is none."""

    name: str
    rate: float
    steps: int
    loss: float


class Contest:
    """Trains the entrants; every training is started once, and resumed where it was stopped.

    configs: folder in configs/. common: arguments of train.py for all. seconds: training time of each; trial_seconds:
    of each trial. rates: learning rates that are tried first. at_once: trainings at a time. All files are in `out`.
    thirds: lengths at which a run also ends, besides the whole. steps_file: in `out`, the numbers of steps.
    """

    def __init__(
        self, entrants: dict[str, Entrant], configs: str, common: tuple, out: Path, seconds: float,
        trial_seconds: float, rates: tuple[float, ...], at_once: int, deadline: float | None,
        thirds: tuple[int, ...] = THIRDS[:-1], steps_file: str = "steps.json",
    ):  # fmt: skip
        self.entrants, self.configs, self.common, self.out = entrants, configs, common, out
        self.seconds, self.trial_seconds, self.rates = seconds, trial_seconds, rates
        self.at_once, self.deadline, self.thirds, self.steps_file = at_once, deadline, thirds, steps_file
        self.trainings = Trainings(out, at_once, deadline)

    def steps(self) -> dict[str, int]:
        """Steps of each entrant, and of each variant (as entrant-variant), in `seconds`: multiples of PARTS."""
        arguments = {}
        for name, entrant in self.entrants.items():
            for variant in entrant.variants or {"": ()}:
                arguments[f"{name}-{variant}".strip("-")] = self._arguments(name, variant, 0)
        path = self.out / self.steps_file
        steps = steps_for_equal_time(path, self.seconds, arguments, self.deadline, self.at_once)
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
        """Of each rate, for each entrant with its best variant, in the order of the rates; none if there is only one.
        See `try_rates`."""
        if len(self.rates) == 1:
            return {}

        def attempt(pairs: list[tuple[str, float]]) -> list[Trial]:
            return self._trials([(name, self.variant(name), rate) for name, rate in pairs])

        found = try_rates(names, self.rates, attempt, _loss)
        return {name: list(trials.values()) for name, trials in found.items()}

    def rate(self, name: str) -> float:
        """The learning rate of an entrant: the one with the lowest loss in its trial, or the only one."""
        if len(self.rates) == 1:
            return self.rates[0]
        return best_rate({trial.rate: trial for trial in self.rate_trials([name])[name]}, _loss)

    def train(self) -> None:
        """All trials, all entrants with all seeds, then the forks."""
        for name in self.entrants:
            self.variant_trials(name)
        self.rate_trials(self.entrants)
        pairs = sorted(((seed, name) for name, e in self.entrants.items() for seed in range(e.seeds)),
                       key=lambda pair: pair[0])  # fmt: skip
        self.trainings.train(self._training(name, seed, 3) for seed, name in pairs)
        self.trainings.train(self._training(name, seed, third) for seed, name in pairs for third in self.thirds)

    def run(self, name: str, seed: int = 0, third: int = 3) -> Path:
        """Folder of an entrant's run that has cooled down at this length. FileNotFoundError if it is not trained."""
        return self.trainings.find(_run_name(name, seed, third))

    def _training(self, name: str, seed: int, third: int) -> Training:
        variant = self.variant(name)
        whole = self.steps()[f"{name}-{variant}".strip("-")]
        part = whole // PARTS
        words = (*self._arguments(name, variant, seed), "--optim.lr", self.rate(name), "--run.validate_every", part,
                 "--run.checkpoint_every", part, "--run.keep_last", 1, "--run.keep_every", 4 * part)  # fmt: skip
        training = Training(_run_name(name, seed, third), whole * third // 3, words)
        return training.cooled() if third == 3 else training.forked(self.run(name, seed))

    def _trials(self, wanted: list[tuple[str, str, float]]) -> list[Trial]:
        trainings = []
        for name, variant, rate in wanted:
            label = f"{name}-{variant}".strip("-")
            steps = max(round(self.steps()[label] * self.trial_seconds / self.seconds), SHARE)
            words = (*self._arguments(name, variant, 0), "--optim.lr", rate, "--run.validate_every", steps,
                     "--validation.reference", "null", "--validation.iterations", TRIED, "--run.checkpoint_every",
                     steps)  # fmt: skip
            trainings.append(Training(f"trial-{label}-{rate:g}", steps, words).cooled())
        return [Trial(training.name, rate, training.steps, last_loss(run)) for training, run, (_, _, rate)
                in zip(trainings, self.trainings.attempt(trainings), wanted, strict=True)]  # fmt: skip

    def _arguments(self, name: str, variant: str, seed: int) -> tuple:
        entrant = self.entrants[name]
        more = (entrant.variants or {}).get(variant, ())
        return ("--config", config_path(self.configs, entrant.config), "--optim.lr_schedule", "constant",
                "--run.preview_every", 0, *self.common, "--run.seed", seed, *entrant.arguments, *more)  # fmt: skip


def validations(run: Path) -> list[dict]:
    """The lines of a run's log with a validation."""
    return [line for line in read_lines(run / "log.jsonl", {"step": int}) if "val_loss" in line]


def last_loss(run: Path | None) -> float:
    """The last loss on held-out latents of a run; DIVERGED if there is no run, or if the loss is not finite."""
    loss = DIVERGED if run is None else validations(run)[-1]["val_loss"]
    return loss if math.isfinite(loss) else DIVERGED


def _loss(trial: Trial) -> float:
    return trial.loss


def _run_name(name: str, seed: int, third: int) -> str:
    return f"{name}-seed{seed}" if third == 3 else f"{name}-seed{seed}-{third}-of-3"
