"""The same network in the published form, for comparison only.

It computes everything at every update, and builds and discards a graph in the updates without gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.models import FixedPointDiT
from fpdm.models.implicit import ImplicitLayer, iterate


class Inputs(NamedTuple):
    """Inputs of an update besides the iterate: injection u (B, N, D) and conditioning c (B, D)."""

    u: Tensor
    c: Tensor


class NaiveImplicitLayer(nn.Module):
    """Concatenates h and u, multiplies by the whole W_1, and computes the block's modulation at every update."""

    depth = ImplicitLayer.depth

    def __init__(self, layer: ImplicitLayer):
        super().__init__()
        width = layer.mix_h.in_features
        self.injection, self.mix_out, self.block = layer.injection, layer.mix_out, layer.block
        self.mix = nn.Linear(2 * width, 2 * width, device=layer.mix_h.weight.device)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([layer.mix_h.weight, layer.mix_u.weight], dim=1))
            self.mix.bias.copy_(layer.mix_u.bias)

    def constants(self, x_pre: Tensor, c: Tensor) -> Inputs:
        return Inputs(self.injection(x_pre), c)

    def forward(self, h: Tensor, inputs: Inputs) -> Tensor:
        mixed = self.mix_out(F.gelu(self.mix(torch.cat([h, inputs.u], dim=-1)), approximate="tanh"))
        return self.block(mixed, self.block.modulation(inputs.c))


class NaiveFixedPointDiT(FixedPointDiT):
    """Builds a graph in the updates without gradient too, and discards it afterwards."""

    def _iterate_without_grad(self, h, constants, iterations, with_residuals):
        h, residuals = iterate(lambda h: self.implicit(h, constants), h, iterations, with_residuals)
        return (h.detach() if iterations else h), residuals


def naive_form(model: FixedPointDiT) -> NaiveFixedPointDiT:
    """The published form of `model`: same results and same gradients. `model` is changed and must not be used later."""
    model.__class__ = NaiveFixedPointDiT
    model.implicit = NaiveImplicitLayer(model.implicit)
    return model
