"""Classifier-free guidance (Ho & Salimans, 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.config import check_range, limits


class Guidance(NamedTuple):
    """Settings of a run's guidance.

    scale: 1 for none (0 would sample without labels). channels: guide the first so many latent channels alone; None for
    all. interval: lowest and highest timestep that is guided; None for all (Kynkäänniemi et al., 2024). rescale: see
    `rescaled`. option: what the names of the options begin with, for errors: cfg_scale or guidance_scale.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: Sequence[int] | None = None
    rescale: float = 0.0
    option: str = "cfg"

    def at(self, t: float) -> bool:
        """Whether timestep t is guided: at any scale but 1, in the interval."""
        return self.scale != 1.0 and (self.interval is None or self.interval[0] <= t <= self.interval[1])

    def check(self) -> None:
        """ValueError for numbers out of range, or without effect."""
        check_range(0, limits.FACTOR, **{f"{self.option}_scale": self.scale})
        check_range(1, limits.LATENT, **{f"{self.option}_channels": self.channels})
        check_range(0, limits.TIMESTEPS, **{f"{self.option}_interval": self.interval})
        check_range(0, 1, guidance_rescale=self.rescale)
        interval = self.interval
        if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
            raise ValueError(
                f"{self.option}_interval={interval}: the lowest and the highest guided timestep, as in 100,700"
            )
        settings = {"channels": self.channels, "interval": interval, "rescale": self.rescale}
        for name, value in settings.items():
            if value and self.scale == 1:
                option = "guidance" if name == "rescale" else self.option
                raise ValueError(
                    f"{option}_{name}={value} with {self.option}_scale=1: nothing is guided; give a {self.option}_scale"
                )

    def check_model(self, guidable: bool, latent_channels: int) -> None:
        """ValueError for what this model cannot do."""
        if self.scale != 1 and not guidable:
            raise ValueError(
                f"{self.option}_scale={self.scale}: this model was trained without label dropout, so it has no null "
                f"label to guide against; use {self.option}_scale 1"
            )
        if self.channels is not None and self.channels > latent_channels:
            raise ValueError(f"{self.option}_channels={self.channels}: the latent has {latent_channels} channels")


def guide(prediction: Tensor, latent_channels: int, guidance: Guidance) -> Tensor:
    """Conditional and null predictions, stacked as (2B, C or 2C, H, H), -> guided (B, C or 2C, H, H).

    guided = null + scale * (conditional - null) on the guided ones of the C = latent_channels channels. What is not
    guided, the variance included, is the conditional prediction. The mean is linear in v, eps and x0 alike, so it does
    not matter which of them is predicted.
    """
    channels = latent_channels if guidance.channels is None else guidance.channels
    conditional, null = prediction.chunk(2)
    mean = null[:, :channels] + guidance.scale * (conditional[:, :channels] - null[:, :channels])
    if guidance.rescale:
        mean = rescaled(mean, conditional[:, :channels], guidance.rescale)
    return torch.cat([mean, conditional[:, channels:]], dim=1)


def rescaled(mean: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """Guided mean (B, C, H, H), brought by `amount` 0..1 to the conditional one's standard deviation per sample,
    against the overexposure that strong guidance brings (Lin et al., 2024, Sec. 3.4)."""
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / mean.std(dim=(1, 2, 3), keepdim=True)
    return amount * ratio * mean + (1 - amount) * mean
