"""torch.compile for the layers that take nearly all of the time, each compiled by itself."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fpdm.models.dit import Denoiser

logger = logging.getLogger("fpdm")
# How many compiled versions torch may keep of one piece of code, which all layers of a class share (its default is 8).
# Each combination of precision, gradients on or off, and which tensors require a gradient needs its own version.
MOST_FORMS = 64
LIMIT = "recompile_limit"  # as torch names it, in its settings and in its warnings


def compile_layers(model: Denoiser, graphs: bool = False) -> None:
    """Compile the explicit blocks and the implicit layer's update, in place.

    Parameter names do not change. All blocks share one compiled graph. The loop over updates is outside of it, so
    the number of iterations does not matter to the compiler. The batch size does not matter either: it is a
    variable of the graph from the first call.

    Three settings apply to everything that the process compiles. Under DDP layers stay whole; by default, dynamo
    splits each of them by the size of DDP's buckets. The number of compiled versions may reach MOST_FORMS. A layer
    that needs more runs uncompiled from then on, and our log warns about it.

    graphs: on a GPU, replay each layer as a CUDA graph: one launch instead of one per kernel. Only for sampling:
        ValueError with gradients. Only for this object: a copy of it would keep using this one's weights.
    """
    torch._dynamo.config.optimize_ddp = False
    setattr(torch._dynamo.config, LIMIT, max(getattr(torch._dynamo.config, LIMIT), MOST_FORMS))
    logging.getLogger("torch._dynamo.convert_frame").addHandler(FALLBACKS)  # added only once
    for layer in model.layers():
        if graphs:
            layer.forward = _replayed(layer.forward)
        else:
            layer.compile()
            layer._compiled_call_impl = _for_any_batch(layer._compiled_call_impl)


class _Fallbacks(logging.Handler):
    """Repeats in our log torch's warning that a layer runs uncompiled."""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if LIMIT in said:
            what = next((line.strip() for line in said.splitlines() if "function" in line), said.splitlines()[0])
            logger.warning(
                f"warning: a compiled layer was given more than {MOST_FORMS} kinds of input and runs uncompiled from "
                f"here on ({what}); TORCH_LOGS=recompiles shows why"
            )


FALLBACKS = _Fallbacks(logging.WARNING)


def _for_any_batch(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Avoids a recompilation when the batch shrinks: the last batch, or samples that leave the batch."""

    def call(h: Tensor, constants: tuple) -> Tensor:
        for tensor in (h, *torch.utils._pytree.tree_leaves(constants)):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(h, constants)

    return call


def _replayed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Each result is copied, because the next replay overwrites it while it may still be needed: as the next update's
    input, or at a later timestep."""
    compiled = torch.compile(forward, mode="reduce-overhead")

    def replay(h: Tensor, constants: tuple) -> Tensor:
        if torch.is_grad_enabled():
            raise ValueError("graphs=True: only for sampling, under torch.no_grad() or inference_mode()")
        return compiled(h, constants).clone()

    return replay
