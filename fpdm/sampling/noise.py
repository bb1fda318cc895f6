"""Noise and labels keyed by (seed, image index), so an image does not depend on batch, rank or order."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
