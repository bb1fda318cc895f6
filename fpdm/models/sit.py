"""Checkpoints of the published SiT (Ma et al., 2024): a DiT by its parameters, trained on the linear interpolant.

Its time runs the other way, from noise (0) to data (1), and its velocity is data - noise. Both differences can be put
into the weights, so a checkpoint is rewritten once and then is a DiT like any other.
"""

import torch
from torch import Tensor

from fpdm.models.blocks import frequencies
from fpdm.models.convert import from_published
from fpdm.models.dit import DiT

TIME = "t_embedder.mlp.0.weight"
OUTPUT = "final_layer.linear"


def from_sit(state_dict: dict[str, Tensor], **config) -> DiT:
    """DiT in eval mode from a published SiT state dict, for a `Flow` with time_scale 1.

    config: the constructor's arguments of the published network. The second half of the output of a network with
    learn_sigma is not used by SiT and is left out. ValueError as in `from_published`.
    """
    state = dict(state_dict)
    channels, patch = config["in_channels"], config["patch_size"]
    if TIME in state and f"{OUTPUT}.weight" in state:
        state[TIME] = reversed_time(state[TIME])
        for name in (f"{OUTPUT}.weight", f"{OUTPUT}.bias"):
            state[name] = -state[name].unflatten(0, (patch**2, -1))[:, :channels].flatten(0, 1)
    return from_published(state, **(config | {"learn_sigma": False}))


def reversed_time(weight: Tensor) -> Tensor:
    """The map (D, F) of the sinusoidal embedding of 1 - t, as a map of that of t.

    cos((1 - t) f) = cos f cos(t f) + sin f sin(t f), and sin((1 - t) f) = sin f cos(t f) - cos f sin(t f).
    """
    of_cos, of_sin = weight.double().chunk(2, dim=1)
    f = frequencies(weight.shape[1] // 2).double()
    return torch.cat([of_cos * f.cos() + of_sin * f.sin(), of_cos * f.sin() - of_sin * f.cos()], dim=1).to(weight.dtype)
