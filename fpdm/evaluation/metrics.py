"""Distances between two sets of features: Fréchet distance, KID, precision and recall.

N images, F features.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

NEIGHBOURS = 3  # k of precision and recall
NEAR = 0.01  # share of held-out images that count as near to a training image


class Statistics(NamedTuple):
    """Mean (F,) and covariance (F, F) of features, float64, and the number of images."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def statistics(features: Tensor) -> Statistics:
    """Statistics of features (N, F); ValueError if N < 2 or a feature is not finite."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} image(s): a distance needs at least 2")
    values = features.cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError("features hold NaN or infinity; check the extractor's weights")
    return Statistics(values.mean(0), np.cov(values, rowvar=False).reshape(values.shape[1], -1), len(values))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al., 2017).

    The trace of the root is the sum of the singular values of A^T B, with S_a = A A^T and S_b = B B^T from float64
    eigenvalues, without those that are only rounding. This is accurate for singular covariances too; roots of the
    product's own eigenvalues would increase rounding from 1e-16 to 1e-8. It is fast if there are fewer images than
    features. ValueError if the numbers of features differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and {b.mean.size} dimensions cannot be compared")
    product = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * product.sum()
    return float(((a.mean - b.mean) ** 2).sum() + trace)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A (F, rank) with A A^T = covariance (F, F)."""
    values, vectors = np.linalg.eigh(covariance)
    real = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, real] * np.sqrt(values[real])


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID (Binkowski et al., 2018) with torch-fidelity: mean and standard deviation over 100 subsets."""
    result = kid_features_to_metric(
        features, reference, kid_subsets=100, kid_subset_size=min(1000, len(features), len(reference)), verbose=False
    )
    return result["kernel_inception_distance_mean"], result["kernel_inception_distance_std"]


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """k-nearest-neighbour precision and recall (Kynkäänniemi et al., 2019), k = 3, with torch-fidelity."""
    result = prc_features_to_metric(features, reference, prc_neighborhood=NEIGHBOURS, verbose=False, save_cpu_ram=True)
    return result["precision"], result["recall"]


def nearest(features: Tensor, reference: Tensor) -> Tensor:
    """Distance of each of features (N, F) to the nearest of reference (M, F): (N,)."""
    found = torch.cat([torch.cdist(rows, reference).argmin(1) for rows in features.split(500)])
    return (features - reference[found]).norm(dim=1)  # cdist rounds: an image would have a distance to itself


class Memorisation(NamedTuple):
    """Median distance of samples and of held-out images to their nearest training image, and the share of samples that
    are as near to one as only 1 % of the held-out images are: about 0.01 for a model that memorises nothing."""

    nearest: float
    nearest_held_out: float
    memorised: float

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> "Memorisation":
        """From the distances (`nearest`) of samples (N,) and of held-out images (K,) to training images."""
        near = theirs.quantile(NEAR)
        return cls(float(ours.median()), float(theirs.median()), float((ours < near).float().mean()))


def memorisation(features: Tensor, training: Tensor, held_out: Tensor) -> Memorisation:
    """From features (N, F) of samples, (M, F) of the training images and (K, F) of held-out images."""
    return Memorisation.of(nearest(features, training), nearest(held_out, training))


def halves(features: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two disjoint random halves of features (N, F)."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    middle = len(features) // 2
    return features[order[:middle]], features[order[middle:]]


def noise_floor(reference: Tensor) -> float:
    """Fréchet distance between two disjoint halves of the reference: the score of equal distributions."""
    a, b = halves(reference)
    return frechet_distance(statistics(a), statistics(b))


def score_name(extractor: str, count: int) -> str:
    """FID for Inception features only, FID-50K for 50,000 images only; otherwise FD-<extractor>@<count>."""
    if extractor == "inception":
        return "FID-50K" if count == 50_000 else f"FID@{count}"
    return f"FD-{extractor}@{count}"


def spatial_name(count: int) -> str:
    """Name of the distance of Inception's spatial features."""
    return "s" + score_name("inception", count)


def bootstrap_deviation(features: Tensor, reference: Statistics, resamples: int, seed: int = 0) -> float:
    """Standard deviation of the Fréchet distance over `resamples` sets chosen from features (N, F) with replacement.

    Only the spread is meaningful: a resampled set repeats images, so its distance is larger than that of the set.
    """
    rng, values = np.random.default_rng(seed), features.double().numpy()
    factor, trace = _factor(reference.covariance), np.trace(reference.covariance)
    distances = []
    for _ in range(resamples):
        chosen = values[rng.integers(0, len(values), len(values))]
        mean, covariance = chosen.mean(0), np.atleast_2d(np.cov(chosen, rowvar=False))
        product = np.sqrt(np.linalg.eigvalsh(factor.T @ covariance @ factor).clip(0)).sum()
        distances.append(((mean - reference.mean) ** 2).sum() + np.trace(covariance) + trace - 2 * product)
    return float(np.std(distances, ddof=1))
