"""What an extractor of features is, and what it returns.

B images of H x W pixels.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Features(NamedTuple):
    """pool (B, F), for distances; Inception also has spatial (B, G), for sFID, and logits (B, K), for IS."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(Protocol):
    """A module with a name, which is part of the score's name, and features: uint8 (B, 3, H, W) -> Features."""

    name: str

    def features(self, images: Tensor) -> Features: ...


def check_weights(extractor: Extractor, resolution: int) -> None:
    """ValueError if the features of a grey image are not finite, as it is with damaged weights."""
    found = extractor.features(torch.full((1, 3, resolution, resolution), 128, dtype=torch.uint8))
    if not all(part.isfinite().all() for part in found if part is not None):
        raise ValueError("its features are not finite")
