"""Noise and conditions keyed by (seed, image index), so an image does not depend on batch, rank or order."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fpdm.data.attributes import Attributes
from fpdm.seeding import key


def image_noise(seed: int, indices: Sequence[int], draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (len(indices), *shape), float32 on the CPU. draw 0 is the initial noise, draw i + 1 step i's."""
    generator = torch.Generator()
    return torch.stack(
        [torch.randn(shape, generator=generator.manual_seed(key("noise", seed, i, draw))) for i in indices]
    )


def check_labels(name: str, labels: Sequence[int], num_classes: int) -> None:
    """ValueError for labels that the model does not have."""
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(f"{name}={wrong}: labels of this model are 0..{num_classes - 1}")


def image_labels(seed: int, indices: Sequence[int], num_classes: int, classes: list[int] | None = None) -> Tensor:
    """Labels (len(indices),) int64: uniform over all classes, or image i has classes[i % len(classes)]."""
    if classes is not None:
        if not classes:
            raise ValueError("classes=[]: give at least one label, or leave it out for all of them")
        check_labels("classes", classes, num_classes)
        return torch.tensor([classes[i % len(classes)] for i in indices])
    return torch.tensor([key("label", seed, i) % num_classes for i in indices])


def check_names(given: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    """ValueError for attributes that the model does not have."""
    wrong = [name for values in given for name in values if name not in names]
    if wrong:
        raise ValueError(f"attributes: no {wrong[0]!r} in this model, which has {', '.join(names)}")


def image_attributes(
    seed: int, indices: Sequence[int], known: Attributes, given: Sequence[Mapping[str, float]] | None = None
) -> Tensor:
    """Attributes (len(indices), A) float32: those of an image of the data, uniformly drawn from the `known`, and in
    their place, for image i, the values that given[i % len(given)] has by name."""
    if given is not None and not given:
        raise ValueError("attributes=[]: give at least one, as in [{}], or leave it out to draw all of them")
    check_names(given or (), known.names)
    drawn = torch.from_numpy(known.vectors[[key("attributes", seed, i) % len(known.vectors) for i in indices]])
    for row, i in zip(drawn, indices, strict=True):
        for name, value in (given[i % len(given)] if given else {}).items():
            row[known.names.index(name)] = value
    return drawn


def attribute_vectors(name: str, given: Sequence | Mapping[str, float], names: Sequence[str]) -> Tensor:
    """Attributes (B, A) float32 from B lists of numbers in the order of `names`, B mappings with all of the names, or
    one of either; ValueError, with the name of the argument, for anything else."""
    rows = [given] if isinstance(given, Mapping) else given
    if isinstance(rows, (list, tuple)):
        check_names([row for row in rows if isinstance(row, Mapping)], names)
        rows = [[row.get(one) for one in names] if isinstance(row, Mapping) else row for row in rows]
    try:
        vectors = torch.from_numpy(np.atleast_2d(np.asarray(rows, np.float32)))
    except (TypeError, ValueError):
        vectors = torch.empty(0, 0)
    if vectors.shape[1:] != (len(names),) or not len(vectors) or not vectors.isfinite().all():
        raise ValueError(f"{name}={given}: give each image a finite number for each of {', '.join(names)}")
    return vectors
