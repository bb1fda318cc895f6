"""Classifier-free guidance (Ho & Salimans, 2022)."""

import torch
from torch import Tensor


def guide(prediction: Tensor, scale: float, latent_channels: int, guided_channels: int | None = None) -> Tensor:
    """Conditional and null predictions, stacked as (2B, C or 2C, H, H), -> guided (B, C or 2C, H, H).

    guided = null + scale * (conditional - null) on the first `guided_channels` of the
    C = latent_channels channels (None: all). What is not guided, the variance included, is
    the conditional prediction. The mean is linear in v, eps and x0 alike, so it does not
    matter which of them is predicted.
    """
    channels = latent_channels if guided_channels is None else guided_channels
    if channels > latent_channels:
        raise ValueError(f"cfg_channels={channels}: the latent has {latent_channels} channels")
    conditional, null = prediction.chunk(2)
    mean = null[:, :channels] + scale * (conditional[:, :channels] - null[:, :channels])
    return torch.cat([mean, conditional[:, channels:]], dim=1)
