"""The same network in the published form, for comparison only.

It computes everything at every update, and builds and discards a graph in the updates without gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.injections import Injection, MixingInjection
from fpdm.models import FixedPointDiT
from fpdm.models.implicit import ImplicitLayer, iterate


class Inputs(NamedTuple):
    """Inputs of an update besides the iterate: injection u (B, N, D) and conditioning c (B, D)."""

    u: Tensor
    c: Tensor

    def at(self, loop: int) -> "Inputs":
        return self


class NaiveInjection(Injection):
    """Concatenates h and u, and multiplies by the whole W_1."""

    def __init__(self, mixing: MixingInjection):
        width = mixing.mix_h.in_features
        super().__init__(width, 0)
        self.project, self.mix_out = mixing.project, mixing.mix_out
        self.mix = nn.Linear(2 * width, 2 * width, device=mixing.mix_h.weight.device)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([mixing.mix_h.weight, mixing.mix_u.weight], dim=1))
            self.mix.bias.copy_(mixing.mix_u.bias)

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        return self.mix_out(F.gelu(self.mix(torch.cat([state, *constants], dim=-1)), approximate="tanh"))


class NaiveImplicitLayer(nn.Module):
    """Computes everything at every update, the block's modulation too."""

    def __init__(self, layer: ImplicitLayer):
        super().__init__()
        self.depth, self.blocks = layer.depth, layer.blocks
        self.injection = NaiveInjection(layer.injection)

    def constants(self, x_pre: Tensor, c: Tensor) -> Inputs:
        return Inputs(self.injection.project(x_pre), c)

    def forward(self, h: Tensor, inputs: Inputs) -> Tensor:
        h = self.injection.enter(h, (inputs.u,))
        for block in self.blocks:
            h = block(h, block.modulation(inputs.c))
        return h


class NaiveFixedPointDiT(FixedPointDiT):
    """Builds a graph in the updates without gradient too, and discards it afterwards."""

    def _iterate_without_grad(self, advance, state, constants, iterations, with_residuals, on_update):
        update = lambda state, loop: advance(state, constants.at(loop), loop)  # noqa: E731
        state, residuals = iterate(update, state, iterations, 0, with_residuals, None, on_update)
        return (state.detach() if iterations else state), residuals


def naive_form(model: FixedPointDiT) -> NaiveFixedPointDiT:
    """The published form of `model`: same results and same gradients. `model` is changed and must not be used later."""
    model.__class__ = NaiveFixedPointDiT
    model.implicit = NaiveImplicitLayer(model.implicit)
    return model
