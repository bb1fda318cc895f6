"""Checks of the metrics on cases with known results."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.evaluation.metrics import (
    Statistics,
    frechet_distance,
    halves,
    precision_recall,
    statistics,
)

SHIFT = 0.5


class Check(NamedTuple):
    """Passed if |found - expected| <= tolerance."""

    what: str
    found: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance


def check_metrics(features: Tensor) -> list[Check]:
    """Checks on features (N, F) of one set of images, and on Gaussians, whose distance has a closed form."""
    whole = statistics(features)
    first, second = (statistics(half) for half in halves(features))
    scale = float(np.trace(whole.covariance))
    shifted = statistics(features.double() + SHIFT)
    precision, recall = precision_recall(features, features)
    dimensions = 64
    a = Statistics(np.zeros(dimensions), np.eye(dimensions), 2)
    b = Statistics(np.full(dimensions, 2.0), 9 * np.eye(dimensions), 2)
    points = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [
        Check("the set against itself: distance", frechet_distance(whole, whole), 0, 1e-3),
        Check("the set against itself: precision", precision, 1, 0),
        Check("the set against itself: recall", recall, 1, 0),
        Check("its halves: distance, above 0 and small compared with the variance", frechet_distance(first, second),
              scale / 4, scale / 4),
        Check("a copy shifted by 0.5 in every feature: distance", frechet_distance(whole, shifted),
              SHIFT**2 * features.shape[1], 1e-3 * max(scale, 1)),
        Check("N(0, 1) and N(2, 9) in 64 dimensions, from their parameters", frechet_distance(a, b),
              dimensions * (2**2 + (3 - 1) ** 2), 1e-6),
        Check("N(0, 1) and N(1, 4) in 4 dimensions, from 200,000 points each",
              frechet_distance(statistics(points), statistics(2 * points.flip(0) + 1)), 4 * (1 + 1), 0.05),
    ]  # fmt: skip
