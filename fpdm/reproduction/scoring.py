"""Scores of many runs with many sampling configs, several at a time, kept in a file."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from fpdm.chain import OutOfTime
from fpdm.devices import process_state
from fpdm.evaluation.accumulate import FeatureMoments
from fpdm.evaluation.classifier import ResidualClassifier
from fpdm.evaluation.comparison import Contender, Score, ScoreBook
from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.weights import weights_key
from fpdm.reproduction.contenders import load_contender
from fpdm.sampling.settings import SamplingConfig


class Scored(NamedTuple):
    """What a score belongs to: a run's folder and how it is sampled."""

    run: Path
    config: SamplingConfig


class Setting(NamedTuple):
    """What all scores share, in a form that other processes can be given. classifier: its folder. real, held_out:
    features of the images that are trained on, and of others. precision: of sampling. threads: of one process."""

    book: Path
    classifier: Path
    real: torch.Tensor
    held_out: torch.Tensor
    images: int
    batch_size: int
    precision: str
    threads: int

    def open(self) -> ScoreBook:
        extractor = ResidualClassifier.load(self.classifier).to(process_state().device)
        key = weights_key(str(self.classifier / "model.safetensors"), "")
        return ScoreBook(self.book, extractor, key, self.real, self.images, self.batch_size, self.held_out)


class Scores:
    """Scores by run and sampling config. `fill` computes those that are missing; `at` looks one up.

    at_once: scores computed at a time, each in a process of its own; deadline: on time.monotonic()'s clock.
    """

    def __init__(self, setting: Setting, at_once: int, deadline: float | None):
        self.setting, self.at_once, self.deadline = setting, at_once, deadline
        self.book = setting.open()
        self._contenders: dict[Path, Contender] = {}

    def at(self, run: Path, **settings) -> Score:
        """The score of a run; settings: of a SamplingConfig. Computed now if it is missing."""
        config = SamplingConfig(**settings)
        self.fill([Scored(run, config)])
        return self.book.score(self._contender(run), config)

    def fill(self, wanted: Iterable[Scored]) -> None:
        """Compute the missing ones; OutOfTime at the deadline, with those that are done in the file."""
        missing = [w for w in wanted if not self.book.knows(self._contender(w.run), w.config)]
        with self._computed(missing) as results:
            for done, score in results:
                self.book.add(self._contender(done.run), done.config, score)
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise OutOfTime("the time limit is reached; the same command resumes")

    def _contender(self, run: Path) -> Contender:
        if run not in self._contenders:
            self._contenders[run] = load_contender(run, process_state().device, self.setting.precision)
        return self._contenders[run]

    @contextmanager
    def _computed(self, missing: list[Scored]) -> Iterator[Iterable[tuple[Scored, Score]]]:
        if self.at_once == 1 or len(missing) < 2:
            yield ((w, self.book.compute(self._contender(w.run), w.config)) for w in missing)
            return
        context = multiprocessing.get_context("spawn")
        with context.Pool(self.at_once, _begin, (self.setting,)) as pool:
            yield pool.imap_unordered(_compute, missing)


_book: ScoreBook | None = None  # of a process of the pool
_precision = "no"


def _begin(setting: Setting) -> None:
    global _book, _precision
    torch.set_num_threads(setting.threads)
    _book, _precision = setting.open(), setting.precision


def _compute(wanted: Scored) -> tuple[Scored, Score]:
    contender = load_contender(wanted.run, process_state().device, _precision)
    return wanted, _book.compute(contender, wanted.config)


def gathered(features: torch.Tensor) -> Gathered:
    """Features (N, F) of single images as what the metrics take."""
    moments = FeatureMoments()
    moments.add(features)
    return Gathered(moments.statistics(), None, None, features)
