"""The cost of one call of a model, counted without running it."""

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fpdm.cost import ForwardCost
from fpdm.models.dit import Denoiser


def block_cost(model: Denoiser) -> ForwardCost:
    """Block passes only, known without a run."""
    return ForwardCost(model.explicit_blocks, model.update_blocks, exit_blocks=len(model.exit_stack()))


def forward_cost(model: Denoiser, depth: int | None = None) -> ForwardCost:
    """Block passes, and FLOPs counted by running a copy on the meta device: correct for changed models too.

    depth: blocks of a DiT in use; by default all.
    """
    twin, cost = meta_twin(model).eval(), block_cost(model)
    cost = cost._replace(exit_flops=_count_exit(twin, twin.decode), head_flops=_count_exit(twin, twin.head))
    if not cost.iterative:
        used = cost.explicit_blocks if depth is None else depth
        return cost._replace(explicit_blocks=used, explicit_flops=_count(twin, depth=depth))
    once, twice = _count(twin, iterations=1), _count(twin, iterations=2)
    return cost._replace(explicit_flops=2 * once - twice, update_flops=twice - once)


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device: its structure without values, so without memory."""
    parameters = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    buffers = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return deepcopy(model, parameters | buffers)


def _count_exit(twin, decode) -> int:
    tokens = torch.empty(1, *twin.token_shape, device="meta")
    c = torch.empty(1, twin.hidden_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decode(tokens, c)
    return counter.get_total_flops()


def _count(twin, **kwargs) -> int:
    x = torch.empty(1, twin.in_channels, *twin.latent_size, device="meta")
    index = torch.zeros(1, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(x, index, twin.y_embedder.example(1, "meta"), **kwargs)
    return counter.get_total_flops()
