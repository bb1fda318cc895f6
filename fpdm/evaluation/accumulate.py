"""Statistics of features in one pass, in float64. They can be saved, merged and extended.

The sums stay on the features' device until they are read: `add` does not wait for the device.

F features, K logits.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from fpdm.devices import to_float64
from fpdm.evaluation.extractor import Features
from fpdm.evaluation.metrics import Statistics

SPLITS = 10  # of the Inception score
SHUFFLE_SEED = 2020  # as in torch-fidelity, for the same splits


class FeatureMoments:
    """Count, sum (F,) and sum of products (F, F) of features; both sums are float64."""

    def __init__(self, count: int = 0, total: Tensor | None = None, products: Tensor | None = None):
        self.count, self.total, self.products = count, total, products

    def add(self, features: Tensor) -> None:
        """features (B, F)."""
        values = to_float64(features)
        self._grow(len(values), values.sum(0), values.mT @ values)

    def merge(self, other: "FeatureMoments") -> None:
        if other.count:
            self._grow(other.count, other.total, other.products)

    def check_finite(self) -> None:
        """ValueError if a feature is not finite. Sums in float64 do not overflow, so it is enough to check the sum."""
        if self.total is not None and not torch.isfinite(self.total).all():
            raise ValueError("features hold NaN or infinity; check the extractor's weights")

    def statistics(self) -> Statistics:
        if self.count < 2:
            raise ValueError(f"{self.count} image(s): a distance needs at least 2")
        self.check_finite()
        mean, products = self.total.cpu().numpy() / self.count, self.products.cpu().numpy()
        covariance = (products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Statistics(mean, covariance, self.count)

    def _grow(self, count: int, total: Tensor, products: Tensor) -> None:
        self.total, self.products = added(self.total, total), added(self.products, products)
        self.count += count


class InceptionScore:
    """exp(mean KL(p(y|x) || p(y))) in each of ten random splits (Salimans et al., 2016)."""

    def __init__(self, counts: Tensor | None = None, labels: Tensor | None = None, negentropy: Tensor | None = None):
        self.counts = counts  # (SPLITS,), images of each split
        self.labels = labels  # (SPLITS, K), sums of p(y|x)
        self.negentropy = negentropy  # (SPLITS,), sums of p log p

    def add(self, logits: Tensor, splits: Tensor) -> None:
        """logits (B, K); splits (B,): the split of each image, on the same device."""
        log_p = to_float64(logits).log_softmax(1)
        p = log_p.exp()
        splits = splits.to(p.device)
        # (B, SPLITS): a product with it sums by split, always in the same order; index_add on a GPU would not.
        member = (splits[:, None] == torch.arange(SPLITS, device=p.device)).double()
        self._grow(member.sum(0), member.mT @ p, member.mT @ (p * log_p).sum(1))

    def merge(self, other: "InceptionScore") -> None:
        if other.labels is not None:
            self._grow(other.counts, other.labels, other.negentropy)

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits; NaN if there are fewer images than splits."""
        counts, labels, negentropy = (part.cpu().numpy() for part in (self.counts, self.labels, self.negentropy))
        if counts.min() == 0:
            return float("nan"), float("nan")
        q = labels / counts[:, None]
        scores = np.exp(negentropy / counts - xlogy(q, q).sum(1))
        return float(scores.mean()), float(scores.std())

    def _grow(self, counts: Tensor, labels: Tensor, negentropy: Tensor) -> None:
        self.counts, self.labels = added(self.counts, counts), added(self.labels, labels)
        self.negentropy = added(self.negentropy, negentropy)


def added(total: Tensor | None, part: Tensor) -> Tensor:
    """total + part, on the device of `part`."""
    return part if total is None else total.to(part.device) + part


def random_splits(count: int) -> Tensor:
    """The split, 0 to 9, of each of `count` images: (count,) int64."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(count)
    bounds = [i * count // SPLITS for i in range(1, SPLITS)]
    splits = np.empty(count, dtype=np.int64)
    splits[order] = np.searchsorted(bounds, np.arange(count), side="right")
    return torch.from_numpy(splits)


class Accumulator(NamedTuple):
    """All sums over images."""

    pool: FeatureMoments
    spatial: FeatureMoments
    inception: InceptionScore

    @classmethod
    def empty(cls) -> "Accumulator":
        return cls(FeatureMoments(), FeatureMoments(), InceptionScore())

    def add(self, features: Features, splits: Tensor) -> None:
        """features of B images; splits (B,), on their device."""
        self.pool.add(features.pool)
        if features.spatial is not None:
            self.spatial.add(features.spatial)
        if features.logits is not None:
            self.inception.add(features.logits, splits)

    def merge(self, other: "Accumulator") -> None:
        for ours, theirs in zip(self, other, strict=True):
            ours.merge(theirs)

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums as arrays to save, the inverse of `of`; waits for the device. ValueError if they are not finite."""
        self.pool.check_finite()
        self.spatial.check_finite()
        parts = {
            f"{name}.{field}": value for name, part in self._asdict().items() for field, value in vars(part).items()
        }
        return {
            name: value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in parts.items()
            if value is not None
        }

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Accumulator":
        """From what `arrays` returned, on the CPU. ValueError if an array is missing, or of another kind or shape."""
        made = cls.empty()
        for name, part in made._asdict().items():
            there = [field for field in vars(part) if f"{name}.{field}" in arrays]
            missing = [field for field in vars(part) if field not in there]
            if there not in ([], ["count"]) and missing:  # of no images there is the count alone
                raise ValueError(f"{name}.{missing[0]} is missing")
            for field in there:
                value = arrays[f"{name}.{field}"]
                if value.dtype.kind not in "if" or (field == "count" and value.ndim):
                    raise ValueError(f"{name}.{field} is {value.dtype} {value.shape}: not what it should be")
                setattr(part, field, int(value) if field == "count" else torch.from_numpy(value))
        for part in (made.pool, made.spatial):
            if part.total is not None and part.products.shape != (len(part.total), len(part.total)):
                raise ValueError(f"sums {tuple(part.total.shape)} with products {tuple(part.products.shape)}")
        return made
