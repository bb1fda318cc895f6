"""What is trained for the paper's tables and figures, and where it is kept."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import ROOT, OutOfTime, run_script, steps_for_equal_time
from fpdm.config import SamplingConfig
from fpdm.devices import process_state
from fpdm.evaluation.comparison import ScoreBook
from fpdm.evaluation.metrics import statistics
from fpdm.evaluation.seeds import Results, over_seeds
from fpdm.models import forward_cost
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.reproduction.digits import VAE_STEPS, Reference, prepare, reference
from fpdm.training.checkpoint import step_of
from fpdm.training.sjfb import SJFBConfig, mean_iterations


class Experiment(NamedTuple):
    """config: a file of configs/digits; arguments: of train.py besides; flops_of: train for as many FLOPs as that
    experiment's time holds, instead of for equal time."""

    config: str
    arguments: tuple = ()
    flops_of: str | None = None


def _sjfb(variant: str, no_grad: int, grad: int) -> Experiment:
    return Experiment("fpdm", ("--sjfb.variant", variant, "--sjfb.no_grad", no_grad, "--sjfb.grad", grad))


def _explicit(blocks: int) -> Experiment:
    return Experiment("fpdm", ("--model.pre_depth", blocks, "--model.post_depth", blocks))


# The FPDM of configs/digits has N = 2, M = 3: at a few minutes of training few updates are best (Tab. 4).
EXPERIMENTS = {
    "fpdm": Experiment("fpdm"),
    "dit": Experiment("dit"),
    "fpdm-equal-flops": Experiment("fpdm", flops_of="dit"),
    "dit-3-blocks": Experiment("dit", ("--model.depth", 3)),
    "dit-narrow": Experiment("dit", ("--model.hidden_size", 68)),
    **{f"stochastic-{k}": _sjfb("stochastic", k, k) for k in (3, 6, 12, 24)},
    **{f"{variant}-{k}": _sjfb(variant, k, k) for variant in ("jfb", "multi-step") for k in (6, 12)},
    **{f"explicit-{k}": _explicit(k) for k in (0, 2, 4)},
    "p2": Experiment("fpdm", ("--diffusion.weighting", "p2")),
}


class Laboratory:
    """Trains what is asked for, once; scores it, once. Everything lies in `out`.

    seconds: training time of an experiment on this machine; the steps that it holds are measured once,
    before its first training. seeds: training seeds of each. deadline: on time.monotonic()'s clock.
    """

    def __init__(
        self, out: Path, seconds: float, seeds: int, images: int, batch_size: int, deadline: float | None = None,
        vae_steps: int = VAE_STEPS, arguments: tuple = (),
    ):  # fmt: skip
        self.out, self.seconds, self.seeds, self.deadline = out, seconds, seeds, deadline
        self.arguments = arguments  # of train.py, for all: a rehearsal's small sizes
        prepare(out, vae_steps)
        self.real: Reference = reference(out / "features")
        self.book = ScoreBook(
            out / "scores.json", self.real.classifier, self.real.key, statistics(self.real.features), images, batch_size
        )
        self._opened: dict[str, list[Trained]] = {}

    def models(self, name: str) -> list[Trained]:
        """One for each training seed."""
        if name not in self._opened:
            device = process_state().device
            self._opened[name] = [load_trained(self._train(name, seed), device) for seed in range(self.seeds)]
        return self._opened[name]

    def score(self, name: str, **settings) -> Results:
        """Of an experiment's models, one for each seed, drawn from with these settings of a SamplingConfig."""
        contenders = [trained.contender for trained in self.models(name)]
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("the time is over; the same command goes on")
        return over_seeds(self.book, contenders, SamplingConfig(**settings))

    def steps_of(self, name: str) -> int:
        """Training steps of an experiment."""
        experiment = EXPERIMENTS[name]
        if experiment.flops_of is None:
            path, arguments = self.out / "steps" / f"{name}.json", {name: self._train_arguments(name, 0)}
            path.parent.mkdir(exist_ok=True)
            return steps_for_equal_time(path, self.seconds, arguments, self.deadline)[name]
        theirs = self.models(experiment.flops_of)[0]
        ours = self.models(experiment.config)[0]  # the same network, trained for equal time
        return max(1, round(theirs.steps * step_flops(theirs) / step_flops(ours)))

    def _train(self, name: str, seed: int) -> Path:
        """The run's folder, trained now unless it was."""
        run_name, steps = f"{name}-seed{seed}", self.steps_of(name)
        found = sorted((self.out / "runs").glob(f"*-{run_name}/checkpoints/latest"))
        if not found or step_of(found[-1].resolve()) != steps:
            run_script("train.py", *self._train_arguments(name, seed), "--optim.steps", steps, "--resume", "auto",
                       deadline=self.deadline)  # fmt: skip
            found = sorted((self.out / "runs").glob(f"*-{run_name}/checkpoints/latest"))
        return found[-1].parent.parent

    def _train_arguments(self, name: str, seed: int) -> list:
        experiment = EXPERIMENTS[name]
        config = Path(os.path.relpath(ROOT / "configs" / "digits" / f"{experiment.config}.yaml"))
        return ["--config", config, "--data.latents", self.out / "latents", "--run.results", self.out / "runs",
                "--run.name", f"{name}-seed{seed}", "--run.seed", seed, *experiment.arguments,
                *self.arguments]  # fmt: skip


def step_flops(trained: Trained) -> float:
    """FLOPs of one training step, on average."""
    cost = forward_cost(trained.model)
    sjfb = SJFBConfig(**trained.config["sjfb"])
    n, m = mean_iterations(sjfb) if trained.contender.source.iterative else (0, 0)
    return trained.config["optim"]["batch_size"] * cost.training_flops(n, m)
