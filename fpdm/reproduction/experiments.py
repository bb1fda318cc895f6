"""Experiments for the paper's tables and figures: training, scoring, and their files."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.chain import OutOfTime
from fpdm.chain.equal_time import steps_for_equal_time
from fpdm.devices import process_state
from fpdm.evaluation.comparison import ScoreBook
from fpdm.evaluation.features import Classifier, cached_classifier
from fpdm.evaluation.metrics import frechet_distance, statistics
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.seeds import Results, over_seeds
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.reproduction.trainings import Training, Trainings, config_path
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.sjfb import SJFBConfig, mean_iterations


class Experiment(NamedTuple):
    """config: name of one of the data set's configs. arguments: further arguments of train.py. flops_of, steps_as: name
    of an experiment; train with the same FLOPs, or for the same steps, instead of for equal time."""

    config: str
    arguments: tuple = ()
    flops_of: str | None = None
    steps_as: str | None = None


class Reference(NamedTuple):
    """images uint8 (N, 3, R, R), labels (N,), the classifier on the device and its key, features (N, F) on the CPU; and
    images, labels and features of real images that are not trained on, if there are any."""

    images: Tensor
    labels: Tensor
    classifier: Classifier
    key: str
    features: Tensor
    held_out_images: Tensor | None = None
    held_out_labels: Tensor | None = None
    held_out: Tensor | None = None

    @property
    def held_out_score(self) -> float:
        """The Fréchet distance of the held-out images, measured as that of samples is."""
        return frechet_distance(statistics(self.held_out), statistics(self.features))


def reference_of(source: str, resolution: int, cache: Path, held_out: str | None = None) -> Reference:
    """Real images, and the classifier trained on them; see `load_labelled`. held_out: source of others."""
    images, labels, classes = load_labelled(source, resolution)
    classifier, key = cached_classifier(images, labels, classes, cache)
    device = process_state().device
    classifier.to(device)

    def features(of: Tensor) -> Tensor:
        return torch.cat([classifier(batch.to(device)).cpu() for batch in of.split(1024)])

    real = Reference(images, labels, classifier, key, features(images))
    if held_out is None:
        return real
    others, labels, _ = load_labelled(held_out, resolution)
    return real._replace(held_out_images=others, held_out_labels=labels, held_out=features(others))


class Data(NamedTuple):
    """A data set.

    configs: folder of its configs. experiments: by name, beginning with the one against which the rates of the others
    are measured. prepare: folder -> None, writes its latents to folder/latents. reference: folder -> Reference, cached
    in the folder.
    """

    configs: str
    experiments: dict[str, Experiment]
    prepare: Callable[[Path], None]
    reference: Callable[[Path], Reference]


class Laboratory:
    """Trains and scores each requested experiment once. All files are in `out`.

    seconds: training time of an experiment on this machine. Its number of steps is measured once, before its first
    training. seeds: number of training seeds. deadline: on time.monotonic()'s clock. arguments: of train.py, for all
    experiments. precision: for sampling; no, bf16 or fp16. jobs: trainings at a time.
    """

    def __init__(
        self, data: Data, out: Path, seconds: float, seeds: int, images: int, batch_size: int,
        deadline: float | None = None, arguments: tuple = (), precision: str = "no", jobs: int = 1,
    ):  # fmt: skip
        self.data, self.out, self.seconds, self.seeds, self.deadline = data, out, seconds, seeds, deadline
        self.arguments, self.precision, self.jobs = arguments, precision, jobs
        data.prepare(out)
        self.real: Reference = data.reference(out / "features")
        self.book = ScoreBook(
            out / "scores.json", self.real.classifier, self.real.key, self.real.features, images, batch_size,
            self.real.held_out,
        )  # fmt: skip
        self.trainings = Trainings(out, jobs, deadline)
        self._opened: dict[str, list[Trained]] = {}

    def models(self, name: str) -> list[Trained]:
        """The trained models of an experiment, one for each training seed."""
        if name not in self._opened:
            steps = self.steps_of(name)
            runs = [
                Training(f"{name}-seed{seed}", steps, self.train_arguments(name, seed)) for seed in range(self.seeds)
            ]
            self._opened[name] = self.trained(runs)
        return self._opened[name]

    def score(self, name: str, **settings) -> Results:
        """Scores of an experiment's models, one for each seed. settings: those of a SamplingConfig."""
        return self.score_models(self.models(name), **settings)

    def score_models(self, models: list[Trained], **settings) -> Results:
        """The same for models that differ only in the training seed."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("the time limit is reached; the same command resumes")
        return over_seeds(self.book, [trained.contender for trained in models], SamplingConfig(**settings))

    def steps_of(self, name: str) -> int:
        """Training steps of an experiment."""
        experiment = self.data.experiments[name]
        if experiment.steps_as is not None:
            return self.steps_of(experiment.steps_as)
        if experiment.flops_of is None:
            first = next(iter(self.data.experiments))
            names = [name] if name == first else [first, name]
            known = None if name == first else (first, self.steps_of(first))
            return self.equal_time(name, {each: self.train_arguments(each, 0) for each in names}, known)[name]
        theirs = self.models(experiment.flops_of)[0]
        ours = self.models(experiment.config)[0]  # the same network, trained for equal time
        return max(1, round(theirs.steps * step_flops(theirs) / step_flops(ours)))

    def equal_time(
        self, name: str, arguments: dict[str, tuple], known: tuple[str, int] | None = None
    ) -> dict[str, int]:
        """Training steps of each model in `seconds`, kept under `name`; see `steps_for_equal_time`."""
        path = self.out / "steps" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        return steps_for_equal_time(path, self.seconds, arguments, self.deadline, self.jobs, known)

    def trained(self, trainings: list[Training]) -> list[Trained]:
        """The models of these runs; those that are not finished are trained now, `jobs` at a time."""
        device = process_state().device
        return [load_trained(run, device, self.precision) for run in self.trainings.train(trainings)]

    def attempted(self, trainings: list[Training]) -> list[Trained | None]:
        """The same, with None for each run that diverges."""
        device = process_state().device
        runs = self.trainings.attempt(trainings)
        return [run and load_trained(run, device, self.precision) for run in runs]

    def train_arguments(self, name: str, seed: int) -> tuple:
        """Arguments of train.py for an experiment, all but the run's name and the number of steps."""
        experiment = self.data.experiments[name]
        config = config_path(self.data.configs, experiment.config)
        return ("--config", config, "--data.latents", self.out / "latents", "--run.seed", seed, *experiment.arguments,
                *self.arguments)  # fmt: skip


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
