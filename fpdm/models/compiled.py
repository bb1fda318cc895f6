"""torch.compile where it pays: the layers that make up nearly all of the time, each by itself."""

from torch import nn

from fpdm.models.blocks import DiTBlock
from fpdm.models.fixed_point import ImplicitLayer


def compile_layers(model: nn.Module) -> None:
    """Compile the explicit blocks and the implicit layer's update, in place.

    Parameter names stay as they are. All blocks share one compiled graph, and the loop over
    updates is outside of it, so the number of iterations does not matter to the compiler.
    """
    inner = {layer.block for layer in model.modules() if isinstance(layer, ImplicitLayer)}  # part of its update
    for layer in model.modules():
        if isinstance(layer, (DiTBlock, ImplicitLayer)) and layer not in inner:
            layer.compile()
