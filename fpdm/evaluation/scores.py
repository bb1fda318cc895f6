"""All scores of a set of samples against a reference, each under its own name.

To add a metric, write a function here and name it in METRICS, at the end.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import (
    NEIGHBOURS,
    bootstrap_deviation,
    frechet_distance,
    kernel_distance,
    memorisation,
    noise_floor,
    precision_recall,
    score_name,
    spatial_name,
)


class Scoring(NamedTuple):
    """extractor: its name. resamples: of the bootstrap for the distance's standard deviation; 0 for none. held_out:
    real images that were not trained on, where the reference was."""

    extractor: str
    resamples: int = 0
    held_out: Gathered | None = None


Metric = Callable[[Gathered, Gathered, Scoring], dict[str, float]]


def score(
    samples: Gathered, reference: Gathered, extractor: str, resamples: int = 0, held_out: Gathered | None = None
) -> dict[str, float]:
    """The numbers of all METRICS, in their order; extractor, resamples and held_out as in Scoring.

    Metrics for which the reference has no data are left out: a file of statistics alone gives distances alone.
    ValueError if precision and recall have too few images.
    """
    scoring, scores = Scoring(extractor, resamples, held_out), {}
    for metric in METRICS.values():
        scores |= metric(samples, reference, scoring)
    return scores


def _distance(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    return {score_name(scoring.extractor, samples.pool.count): frechet_distance(samples.pool, reference.pool)}


def _deviation(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    """Needs the features of all samples."""
    count = samples.pool.count
    if not scoring.resamples or samples.kept is None or len(samples.kept) < count:
        return {}
    deviation = bootstrap_deviation(samples.kept, reference.pool, scoring.resamples)
    return {f"{score_name(scoring.extractor, count)}_std": deviation}


def _spatial_distance(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    if samples.spatial is None or reference.spatial is None:
        return {}
    return {spatial_name(samples.pool.count): frechet_distance(samples.spatial, reference.spatial)}


def _inception_score(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    if samples.inception_score is None:
        return {}
    mean, deviation = samples.inception_score
    return {"IS": mean, "IS_std": deviation}


def _noise_floor(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    kept = kept_features(samples, reference)
    return {"noise_floor": noise_floor(kept[1])} if kept else {}


def _kernel_distance(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    kept = kept_features(samples, reference)
    return dict(zip(("kid", "kid_std"), kernel_distance(*kept), strict=True)) if kept else {}


def _precision_recall(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    kept = kept_features(samples, reference)
    return dict(zip(("precision", "recall"), precision_recall(*kept), strict=True)) if kept else {}


def _memorisation(samples: Gathered, reference: Gathered, scoring: Scoring) -> dict[str, float]:
    kept = kept_features(samples, reference)
    if not kept or scoring.held_out is None or scoring.held_out.kept is None:
        return {}
    return memorisation(*kept, scoring.held_out.kept)._asdict()


def kept_features(samples: Gathered, reference: Gathered) -> tuple[Tensor, Tensor] | None:
    """Features (K, F) of single images of both sets; None if one has only statistics.

    ValueError if there are too few for precision and recall.
    """
    if samples.kept is None or reference.kept is None:
        return None
    few = min(len(samples.kept), len(reference.kept))
    if few <= NEIGHBOURS:
        raise ValueError(f"{few} images: precision and recall need {NEIGHBOURS + 1}")
    return samples.kept, reference.kept


# Name -> a function of (samples, reference, scoring) that returns named numbers, {} where it does not apply.
# The scores are computed and written in this order.
METRICS: dict[str, Metric] = {
    "distance": _distance,
    "deviation": _deviation,
    "spatial distance": _spatial_distance,
    "inception score": _inception_score,
    "noise floor": _noise_floor,
    "kernel distance": _kernel_distance,
    "precision and recall": _precision_recall,
    "memorisation": _memorisation,
}
