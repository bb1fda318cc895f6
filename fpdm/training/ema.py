"""Exponential moving average of the weights, in float32."""

from copy import deepcopy

import torch
from torch import nn


class EMA:
    """A copy of the model whose weights follow the trained ones.

    Float32 whatever the training precision: at decay 0.9999 a bfloat16 average would round
    every update away and never change.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = deepcopy(model).float().eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Call after optimizer step `step` (0 is the first), even if it was skipped and the weights are unchanged."""
        averages = list(self.model.parameters())
        weights = [weight.detach().float() for weight in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - ramped_decay(self.decay, step))


def ramped_decay(decay: float, step: int) -> float:
    """Decay at `step`: rises from 0.1 to `decay`, so that the random start is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))
