"""torch.compile where it pays: the layers that make up nearly all of the time, each by itself."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fpdm.models.dit import Denoiser

logger = logging.getLogger("fpdm")
# Compiled forms that torch keeps of one piece of code, all layers of a class together; 8 if nobody says otherwise. A
# form is made for each combination of gradient or none, precision, and what requires a gradient.
MOST_FORMS = 64
LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # torch 2.6


def compile_layers(model: Denoiser, graphs: bool = False) -> None:
    """Compile the explicit blocks and the implicit layer's update, in place.

    Parameter names stay as they are. All blocks share one compiled graph, and the loop over
    updates is outside of it, so the number of iterations does not matter to the compiler; nor does the
    size of the batch, which is a variable of the graph from the first call on. Three settings hold for all that
    the process compiles: under DDP layers stay whole, where dynamo would cut each up by the size of DDP's buckets;
    MOST_FORMS; and a warning in our log where that is not enough, for such a layer runs uncompiled from there on.

    graphs: on a GPU, replay each layer as a CUDA graph: one launch instead of one for each kernel. For
        sampling alone, ValueError with gradients; and for this object alone: a copy of it would go on with
        this one's weights.
    """
    torch._dynamo.config.optimize_ddp = False
    setattr(torch._dynamo.config, LIMIT, max(getattr(torch._dynamo.config, LIMIT), MOST_FORMS))
    logging.getLogger("torch._dynamo.convert_frame").addHandler(FALLBACKS)  # once, however often it is called
    for layer in model.layers():
        if graphs:
            layer.forward = _replayed(layer.forward)
        else:
            layer.compile()
            layer._compiled_call_impl = _for_any_batch(layer._compiled_call_impl)


class _Fallbacks(logging.Handler):
    """Says in our log what torch says in its own: that a layer runs uncompiled."""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if LIMIT in said:
            what = next((line.strip() for line in said.splitlines() if "function" in line), said.splitlines()[0])
            logger.warning(
                f"warning: a compiled layer was given more than {MOST_FORMS} kinds of input and runs uncompiled from "
                f"here on ({what}); TORCH_LOGS=recompiles tells why"
            )


FALLBACKS = _Fallbacks(logging.WARNING)


def _for_any_batch(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An odd last batch, or samples that leave the batch, compile nothing anew."""

    def call(h: Tensor, constants: tuple) -> Tensor:
        for tensor in (h, *torch.utils._pytree.tree_leaves(constants)):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(h, constants)

    return call


def _replayed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A replay overwrites what the one before it returned, which is the next update's input or kept for a later
    timestep: so each result is copied."""
    compiled = torch.compile(forward, mode="reduce-overhead")

    def replay(h: Tensor, constants: tuple) -> Tensor:
        if torch.is_grad_enabled():
            raise ValueError("graphs=True: for sampling alone, under torch.no_grad() or inference_mode()")
        return compiled(h, constants).clone()

    return replay
