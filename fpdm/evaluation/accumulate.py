"""Statistics of features in one pass, in float64, that can be saved, merged and gone on with.

F features, K logits.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from fpdm.evaluation.features import Features
from fpdm.evaluation.metrics import Statistics

SPLITS = 10  # of the Inception score
SHUFFLE_SEED = 2020  # torch-fidelity's, so that its splits are ours


class Moments:
    """Count, sum (F,) and sum of products (F, F) of features."""

    def __init__(self, count: int = 0, total: np.ndarray | None = None, products: np.ndarray | None = None):
        self.count, self.total, self.products = count, total, products

    def add(self, features: Tensor) -> None:
        """features (B, F)."""
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinity; check the images")
        values = features.double()
        self._grow(len(values), values.sum(0).cpu().numpy(), (values.mT @ values).cpu().numpy())

    def merge(self, other: "Moments") -> None:
        if other.count:
            self._grow(other.count, other.total, other.products)

    def statistics(self) -> Statistics:
        if self.count < 2:
            raise ValueError(f"{self.count} image(s): a distance needs at least 2")
        mean = self.total / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Statistics(mean, covariance, self.count)

    def _grow(self, count: int, total: np.ndarray, products: np.ndarray) -> None:
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products
        self.count += count


class InceptionScore:
    """exp of the mean KL of p(y|x) from p(y) in each of ten random splits (Salimans et al., 2016)."""

    def __init__(self, counts: np.ndarray | None = None, labels: np.ndarray | None = None, negentropy=None):
        self.counts = np.zeros(SPLITS) if counts is None else counts  # images of each split
        self.labels = labels  # (SPLITS, K), sums of p(y|x)
        self.negentropy = np.zeros(SPLITS) if negentropy is None else negentropy  # sums of p log p

    def add(self, logits: Tensor, splits: np.ndarray) -> None:
        """logits (B, K); splits (B,) which split each image is in."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        labels = np.zeros((SPLITS, logits.shape[1]))
        np.add.at(labels, splits, p.cpu().numpy())
        self.labels = labels if self.labels is None else self.labels + labels
        self.counts = self.counts + np.bincount(splits, minlength=SPLITS)
        np.add.at(self.negentropy, splits, (p * log_p).sum(1).cpu().numpy())

    def merge(self, other: "InceptionScore") -> None:
        if other.labels is not None:
            self.labels = other.labels if self.labels is None else self.labels + other.labels
            self.counts = self.counts + other.counts
            self.negentropy = self.negentropy + other.negentropy

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits; NaN where there are fewer images than splits."""
        if self.counts.min() == 0:
            return float("nan"), float("nan")
        q = self.labels / self.counts[:, None]
        scores = np.exp(self.negentropy / self.counts - xlogy(q, q).sum(1))
        return float(scores.mean()), float(scores.std())


def random_splits(count: int) -> np.ndarray:
    """Which of the ten splits each of `count` images is in, (count,)."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(count)
    bounds = [i * count // SPLITS for i in range(1, SPLITS)]
    splits = np.empty(count, dtype=np.int64)
    splits[order] = np.searchsorted(bounds, np.arange(count), side="right")
    return splits


class Accumulator(NamedTuple):
    """Everything that is summed up over images."""

    pool: Moments
    spatial: Moments
    inception: InceptionScore

    @classmethod
    def empty(cls) -> "Accumulator":
        return cls(Moments(), Moments(), InceptionScore())

    def add(self, features: Features, splits: np.ndarray) -> None:
        self.pool.add(features.pool)
        if features.spatial is not None:
            self.spatial.add(features.spatial)
        if features.logits is not None:
            self.inception.add(features.logits, splits)

    def merge(self, other: "Accumulator") -> None:
        for ours, theirs in zip(self, other, strict=True):
            ours.merge(theirs)

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays to be saved; `of` is the way back."""
        parts = {
            f"{name}.{field}": value for name, part in self._asdict().items() for field, value in vars(part).items()
        }
        return {name: np.asarray(value) for name, value in parts.items() if value is not None}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Accumulator":
        made = cls.empty()
        for name, part in made._asdict().items():
            for field in vars(part):
                if f"{name}.{field}" in arrays:
                    value = arrays[f"{name}.{field}"]
                    setattr(part, field, int(value) if field == "count" else value)
        return made
