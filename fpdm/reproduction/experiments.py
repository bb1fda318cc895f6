"""Experiments for the paper's tables and figures: training, scoring, and their files."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.chain import ROOT, OutOfTime, run_script
from fpdm.chain.equal_time import steps_for_equal_time
from fpdm.devices import process_state
from fpdm.evaluation.comparison import ScoreBook
from fpdm.evaluation.features import Classifier, cached_classifier
from fpdm.evaluation.metrics import statistics
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.seeds import Results, over_seeds
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.checkpoint import step_of
from fpdm.training.sjfb import SJFBConfig, mean_iterations


class Experiment(NamedTuple):
    """config: name of one of the data set's configs. arguments: further arguments of train.py. flops_of, steps_as: name
    of an experiment; train with the same FLOPs, or for the same steps, instead of for equal time."""

    config: str
    arguments: tuple = ()
    flops_of: str | None = None
    steps_as: str | None = None


class Reference(NamedTuple):
    """images uint8 (N, 3, R, R), labels (N,), the classifier on the device and its key, features (N, F) on the CPU."""

    images: Tensor
    labels: Tensor
    classifier: Classifier
    key: str
    features: Tensor


def reference_of(source: str, resolution: int, cache: Path) -> Reference:
    """Real images, and the classifier trained on them; see `load_labelled`."""
    images, labels, classes = load_labelled(source, resolution)
    classifier, key = cached_classifier(images, labels, classes, cache)
    device = process_state().device
    classifier.to(device)
    features = torch.cat([classifier(batch.to(device)).cpu() for batch in images.split(1024)])
    return Reference(images, labels, classifier, key, features)


class Data(NamedTuple):
    """A data set. configs: folder of its configs. experiments: by name. prepare: folder -> None, writes its latents to
    folder/latents. reference: folder -> Reference, cached in the folder."""

    configs: str
    experiments: dict[str, Experiment]
    prepare: Callable[[Path], None]
    reference: Callable[[Path], Reference]


class Laboratory:
    """Trains and scores each requested experiment once. All files are in `out`.

    seconds: training time of an experiment on this machine. Its number of steps is measured once, before its first
    training. seeds: number of training seeds. deadline: on time.monotonic()'s clock. arguments: of train.py, for all
    experiments. precision: for sampling; no, bf16 or fp16.
    """

    def __init__(
        self, data: Data, out: Path, seconds: float, seeds: int, images: int, batch_size: int,
        deadline: float | None = None, arguments: tuple = (), precision: str = "no",
    ):  # fmt: skip
        self.data, self.out, self.seconds, self.seeds, self.deadline = data, out, seconds, seeds, deadline
        self.arguments, self.precision = arguments, precision
        data.prepare(out)
        self.real: Reference = data.reference(out / "features")
        self.book = ScoreBook(
            out / "scores.json", self.real.classifier, self.real.key, statistics(self.real.features), images, batch_size
        )
        self._opened: dict[str, list[Trained]] = {}

    def models(self, name: str) -> list[Trained]:
        """The trained models of an experiment, one for each training seed."""
        if name not in self._opened:
            device = process_state().device
            self._opened[name] = [
                load_trained(self._train(name, seed), device, self.precision) for seed in range(self.seeds)
            ]
        return self._opened[name]

    def score(self, name: str, **settings) -> Results:
        """Scores of an experiment's models, one for each seed. settings: those of a SamplingConfig."""
        contenders = [trained.contender for trained in self.models(name)]
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("the time limit is reached; the same command resumes")
        return over_seeds(self.book, contenders, SamplingConfig(**settings))

    def steps_of(self, name: str) -> int:
        """Training steps of an experiment."""
        experiment = self.data.experiments[name]
        if experiment.steps_as is not None:
            return self.steps_of(experiment.steps_as)
        if experiment.flops_of is None:
            path, arguments = self.out / "steps" / f"{name}.json", {name: self._train_arguments(name, 0)}
            path.parent.mkdir(exist_ok=True)
            return steps_for_equal_time(path, self.seconds, arguments, self.deadline)[name]
        theirs = self.models(experiment.flops_of)[0]
        ours = self.models(experiment.config)[0]  # the same network, trained for equal time
        return max(1, round(theirs.steps * step_flops(theirs) / step_flops(ours)))

    def _train(self, name: str, seed: int) -> Path:
        """The run's folder. The model is trained now, unless it already was."""
        run_name, steps = f"{name}-seed{seed}", self.steps_of(name)
        found = sorted((self.out / "runs").glob(f"*-{run_name}/checkpoints/latest"))
        if not found or step_of(found[-1].resolve()) != steps:
            run_script("train.py", *self._train_arguments(name, seed), "--optim.steps", steps, "--resume", "auto",
                       deadline=self.deadline)  # fmt: skip
            found = sorted((self.out / "runs").glob(f"*-{run_name}/checkpoints/latest"))
        return found[-1].parent.parent

    def _train_arguments(self, name: str, seed: int) -> list:
        experiment = self.data.experiments[name]
        config = Path(os.path.relpath(ROOT / "configs" / self.data.configs / f"{experiment.config}.yaml"))
        return ["--config", config, "--data.latents", self.out / "latents", "--run.results", self.out / "runs",
                "--run.name", f"{name}-seed{seed}", "--run.seed", seed, *experiment.arguments,
                *self.arguments]  # fmt: skip


class Section(NamedTuple):
    """A section of a report: a title, and text with tables and pictures."""

    title: str
    text: str


def step_flops(trained: Trained) -> float:
    """Mean FLOPs of one training step."""
    cost = trained.contender.source.cost
    sjfb = SJFBConfig(**trained.config["sjfb"])
    n, m = mean_iterations(sjfb) if cost.iterative else (0, 0)
    return trained.config["optim"]["batch_size"] * cost.training_flops(n, m)
