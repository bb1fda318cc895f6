"""What one forward of a model costs, in the paper's unit (block passes) and in operations."""

from collections.abc import Iterable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fpdm.models.dit import DiT
from fpdm.models.fixed_point_dit import FixedPointDiT


class ForwardCost(NamedTuple):
    """Cost of one forward for one image: explicit part + iterations x update.

    Block passes count transformer blocks (the paper's Sec. 4.2: pre + iterations + post).
    FLOPs are 2 per multiply-add of the matrix products and attention, as counted by
    torch's own counter; elementwise work is not in them.
    """

    explicit_blocks: int
    explicit_flops: int
    update_flops: int

    def blocks(self, iterations: int | None) -> int:
        return self.explicit_blocks + (iterations or 0)

    def flops(self, iterations: int | None) -> int:
        return self.explicit_flops + (iterations or 0) * self.update_flops

    def training_flops(self, n: int = 0, m: int = 0) -> int:
        """Of one image through a training step with n updates without gradient and m with.

        The backward pass costs twice the forward; what gradient checkpointing computes again
        is not counted.
        """
        return 3 * self.explicit_flops + (n + 3 * m) * self.update_flops

    def total_flops(self, iterations: Iterable[int | None]) -> int:
        """Of a whole sampling run, given the iterations of each timestep."""
        return sum(map(self.flops, iterations))


def count_explicit_blocks(model: DiT | FixedPointDiT) -> int:
    """Block passes of one forward besides the implicit layer's."""
    if isinstance(model, DiT):
        return len(model.blocks)
    return len(model.pre_blocks) + len(model.post_blocks)


def forward_cost(model: DiT | FixedPointDiT) -> ForwardCost:
    """Counted by running a copy on the meta device, without arithmetic, so it holds for changed models too."""
    twin = meta_twin(model).eval()
    if isinstance(model, DiT):
        return ForwardCost(count_explicit_blocks(model), _count(twin), 0)
    once, twice = _count(twin, iterations=1), _count(twin, iterations=2)
    return ForwardCost(count_explicit_blocks(model), 2 * once - twice, twice - once)


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device: all of its structure, none of its numbers, no memory."""
    parameters = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    buffers = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return deepcopy(model, parameters | buffers)


def _count(twin, **kwargs) -> int:
    x = torch.empty(1, twin.in_channels, twin.input_size, twin.input_size, device="meta")
    index = torch.zeros(1, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(x, index, index, **kwargs)
    return counter.get_total_flops()
