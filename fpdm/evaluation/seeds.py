"""Scores over several training seeds: means, standard deviations, and which differences exceed them."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fpdm.evaluation.comparison import Contender, Score, ScoreBook
from fpdm.sampling.settings import SamplingConfig


class Results(NamedTuple):
    """Scores of one model and sampling config, one for each seed."""

    scores: list[Score]

    @property
    def distances(self) -> np.ndarray:
        return np.array([score.distance for score in self.scores])

    @property
    def block_passes(self) -> float:
        return float(np.mean([score.block_passes for score in self.scores]))

    @property
    def nearest(self) -> np.ndarray:
        return np.array([score.nearest for score in self.scores])

    @property
    def memorised(self) -> np.ndarray:
        return np.array([score.memorised for score in self.scores])

    @property
    def gflops(self) -> float:
        return float(np.mean([score.gflops for score in self.scores]))

    @property
    def ms_per_image(self) -> float:
        return float(np.mean([score.ms_per_image for score in self.scores]))


def over_seeds(
    book: ScoreBook, models: list[Contender], config: SamplingConfig | Callable[[int], SamplingConfig]
) -> Results:
    """Scores of models that differ only in the training seed. Model i is sampled with seed i.

    config: one for all models, or a function i -> config.
    """
    made = config if callable(config) else lambda seed: replace(config, seed=seed)
    return Results([book.score(model, made(seed)) for seed, model in enumerate(models)])


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def difference(values: np.ndarray, baseline: np.ndarray) -> tuple[str, str]:
    """Mean difference over seeds ± its standard deviation, and a verdict.

    The verdict is "better" or "worse" if the mean exceeds the deviation, else "no difference".
    """
    gaps = values - baseline
    beyond = len(gaps) > 1 and abs(gaps.mean()) > gaps.std(ddof=1)
    verdict = ("better" if gaps.mean() < 0 else "worse") if beyond else "no difference"
    return f"{'+' if gaps.mean() > 0 else ''}{spread(gaps)}", verdict
