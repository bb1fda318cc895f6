"""Classifier-free guidance (Ho & Salimans, 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def guide(
    prediction: Tensor, scale: float, latent_channels: int, guided_channels: int | None = None, rescale: float = 0.0
) -> Tensor:
    """Conditional and null predictions, stacked as (2B, C or 2C, H, H), -> guided (B, C or 2C, H, H).

    guided = null + scale * (conditional - null) on the first `guided_channels` of the
    C = latent_channels channels (None: all). What is not guided, the variance included, is
    the conditional prediction. The mean is linear in v, eps and x0 alike, so it does not
    matter which of them is predicted. rescale: see `rescaled`.
    """
    channels = latent_channels if guided_channels is None else guided_channels
    if channels > latent_channels:
        raise ValueError(f"cfg_channels={channels}: the latent has {latent_channels} channels")
    conditional, null = prediction.chunk(2)
    mean = null[:, :channels] + scale * (conditional[:, :channels] - null[:, :channels])
    if rescale:
        mean = rescaled(mean, conditional[:, :channels], rescale)
    return torch.cat([mean, conditional[:, channels:]], dim=1)


def rescaled(mean: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """Guided mean (B, C, H, H), brought by `amount` 0..1 to the conditional one's standard deviation per sample,
    against the overexposure that strong guidance brings (Lin et al., 2024, Sec. 3.4)."""
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / mean.std(dim=(1, 2, 3), keepdim=True)
    return amount * ratio * mean + (1 - amount) * mean


def guided(scale: float, interval: Sequence[int] | None, t: int) -> bool:
    """Whether timestep t is guided: at any scale but 1, in the interval (Kynkäänniemi et al., 2024)."""
    return scale != 1.0 and (interval is None or interval[0] <= t <= interval[1])
