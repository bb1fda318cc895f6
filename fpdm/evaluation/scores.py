"""Every score of a set of samples against a reference, each named for what it is."""

from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import (
    NEIGHBOURS,
    bootstrap_deviation,
    frechet_distance,
    kernel_distance,
    noise_floor,
    precision_recall,
    score_name,
    spatial_name,
)


def score(samples: Gathered, reference: Gathered, extractor: str, resamples: int = 0) -> dict[str, float]:
    """extractor: its name. resamples: of the bootstrap behind the standard deviation of the distance; 0 for none.

    What the reference does not have is left out: a file of statistics alone gives distances alone.
    """
    count = samples.pool.count
    name = score_name(extractor, count)
    scores = {name: frechet_distance(samples.pool, reference.pool)}
    if resamples and samples.kept is not None and len(samples.kept) == count:
        scores[f"{name}_std"] = bootstrap_deviation(samples.kept, reference.pool, resamples)
    if samples.spatial is not None and reference.spatial is not None:
        scores[spatial_name(count)] = frechet_distance(samples.spatial, reference.spatial)
    if samples.inception_score is not None:
        scores["IS"], scores["IS_std"] = samples.inception_score
    if reference.kept is not None:
        few = min(len(samples.kept), len(reference.kept))
        if few <= NEIGHBOURS:
            raise ValueError(f"{few} images: precision and recall need {NEIGHBOURS + 1}")
        scores["noise_floor"] = noise_floor(reference.kept)
        scores["kid"], scores["kid_std"] = kernel_distance(samples.kept, reference.kept)
        scores["precision"], scores["recall"] = precision_recall(samples.kept, reference.kept)
    return scores
