"""torch.compile where it pays: the layers that make up nearly all of the time, each by itself."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fpdm.models.blocks import DiTBlock
from fpdm.models.fixed_point import ImplicitLayer


def compile_layers(model: nn.Module, graphs: bool = False) -> None:
    """Compile the explicit blocks and the implicit layer's update, in place.

    Parameter names stay as they are. All blocks share one compiled graph, and the loop over
    updates is outside of it, so the number of iterations does not matter to the compiler. Under DDP,
    which dynamo would cut each layer up for by the size of DDP's buckets, layers stay whole too; this
    holds for all that the process compiles.

    graphs: on a GPU, replay each layer as a CUDA graph: one launch instead of one for each kernel. For
        sampling alone, ValueError with gradients; and for this object alone: a copy of it would go on with
        this one's weights.
    """
    torch._dynamo.config.optimize_ddp = False
    inner = {layer.block for layer in model.modules() if isinstance(layer, ImplicitLayer)}  # part of its update
    for layer in model.modules():
        if isinstance(layer, (DiTBlock, ImplicitLayer)) and layer not in inner:
            if graphs:
                layer.forward = _replayed(layer.forward)
            else:
                layer.compile()


def _replayed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A replay overwrites what the one before it returned, which is the next update's input or kept for a later
    timestep: so each result is copied."""
    compiled = torch.compile(forward, mode="reduce-overhead")

    def replay(h: Tensor, constants: tuple) -> Tensor:
        if torch.is_grad_enabled():
            raise ValueError("graphs=True: for sampling alone, under torch.no_grad() or inference_mode()")
        return compiled(h, constants).clone()

    return replay
