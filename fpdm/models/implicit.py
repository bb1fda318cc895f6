"""The implicit layer (Eq. 2 and 3) and the iteration that solves it.

B batch, N tokens, D width, h the iterate, u the injection.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.models.anderson import Anderson, relative_residual
from fpdm.models.blocks import DiTBlock, within_float16


class Constants(NamedTuple):
    """What is constant over the iterations of one timestep.

    injected: (B, N, 2D) W_1u u + b_1. modulation: the block's six tensors (B, 1, D).
    """

    injected: Tensor
    modulation: tuple[Tensor, ...]

    def rows(self, chosen: Tensor) -> "Constants":
        """The constants of some samples; chosen (B,) bool."""
        return Constants(self.injected[chosen], tuple(part[chosen] for part in self.modulation))

    def detach(self) -> "Constants":
        return Constants(self.injected.detach(), tuple(part.detach() for part in self.modulation))


class ImplicitLayer(nn.Module):
    """g(h; u, c) = Block(W_2 gelu(W_1 [h; u] + b_1) + b_2; c), iterated to its fixed point.

    The GELU is the tanh form, as everywhere in the network.

    W_1 is stored as two halves, W_1 [h; u] = W_1h h + W_1u u. The second does not depend
    on h, so it is computed once per timestep (`constants`) and not at every update.
    """

    depth = 1  # blocks in one update: its cost in block passes

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.injection = nn.Linear(hidden_size, hidden_size)  # W_p, b_p
        self.mix_h = nn.Linear(hidden_size, 2 * hidden_size, bias=False)  # W_1h
        self.mix_u = nn.Linear(hidden_size, 2 * hidden_size)  # W_1u, b_1
        self.mix_out = nn.Linear(2 * hidden_size, hidden_size)  # W_2, b_2
        self.block = DiTBlock(hidden_size, num_heads)

    def constants(self, x_pre: Tensor, c: Tensor) -> Constants:
        """x_pre (B, N, D) output of the pre blocks, c (B, D) conditioning."""
        u = self.injection(within_float16(x_pre))  # Eq. 2, (B, N, D)
        return Constants(self.mix_u(u), self.block.modulation(c))

    def forward(self, h: Tensor, constants: Constants) -> Tensor:
        """One update, Eq. 3: h (B, N, D) -> g(h) (B, N, D), in the type of h.

        Under autocast the maps return 16 bits. The stream that the block adds to, and so the iterate, stays
        float32, as in a DiT.
        """
        mixed = self.mix_out(F.gelu(self.mix_h(within_float16(h)) + constants.injected, approximate="tanh"))
        return self.block(mixed.to(h.dtype), constants.modulation)

    def initialise_mixing(self) -> None:
        """Xavier initialisation of W_1 as one (2D, 2D) map, then split into its halves."""
        joint = torch.empty(self.mix_h.out_features, 2 * self.mix_h.in_features)
        nn.init.xavier_uniform_(joint)
        with torch.no_grad():
            self.mix_h.weight.copy_(joint[:, : self.mix_h.in_features])
            self.mix_u.weight.copy_(joint[:, self.mix_h.in_features :])


def iterate(
    update: Callable[[Tensor], Tensor],
    h: Tensor,
    iterations: int,
    with_residuals: bool = False,
    accelerate: Anderson | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Fixed point iteration: `iterations` updates from h (B, N, D).

    accelerate: chooses each next iterate from h and its update, the last one included; without it, the next
    iterate is the update. Returns the last iterate and, on request, each update's residual (B,). The residuals
    stay on the device: nothing here waits for it.
    """
    residuals = []
    for i in range(iterations):
        new = update(h)
        if with_residuals:
            residuals.append(relative_residual(new, h))
        if accelerate is None:
            h = new
        elif i < iterations - 1:
            h = accelerate(h, new)
        else:
            h = accelerate.settle(h, new)
    return h, residuals


def iterate_until(
    layer: ImplicitLayer,
    h: Tensor,
    constants: Constants,
    tolerance: float,
    at_most: Tensor,
    accelerate: Anderson | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Iterate each sample until its residual is at most `tolerance`, or `at_most` (B,) updates are done.

    Finished samples leave the batch and cost nothing more. Every sample gets at least one
    update. h (B, N, D). Returns the last iterates; the residual of each update, (B, most
    updates of any sample), with NaN where a sample had fewer; the number of updates per sample
    (B,); and, with Anderson acceleration, the number of rejected steps per sample (B,).
    Waits for the device at every update.
    """
    solution, counts = h.clone(), torch.zeros(len(h), dtype=torch.long, device=h.device)
    fallbacks = None if accelerate is None else torch.zeros_like(counts)
    residuals = []
    active = torch.arange(len(h), device=h.device)
    while len(active):
        new = layer(h, constants)
        residual = relative_residual(new, h)
        counts[active] += 1
        going = ~(residual <= tolerance) & (counts[active] < at_most[active])  # a NaN residual continues
        if accelerate is not None:
            chosen = accelerate(h, new)
            new = torch.where(going[:, None, None], chosen, accelerate.settled(new))
            fallbacks[active] = accelerate.fallbacks
        solution[active] = new.to(solution.dtype)
        residuals.append(torch.full((len(counts),), torch.nan, device=h.device).index_copy(0, active, residual))
        h, constants, active = new[going], constants.rows(going), active[going]
        if accelerate is not None:
            accelerate.rows(going)
    return solution, torch.stack(residuals, dim=1), counts, fallbacks
