"""Classifier-free guidance (Ho & Salimans, 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.config import check_range, limits


class Guidance(NamedTuple):
    """Guidance settings of a run.

    scale: 1 for none (0 would sample without labels). channels: number of latent channels, from the first, that are
    guided; None for all. interval: lowest and highest guided timestep; None for all (Kynkäänniemi et al., 2024).
    rescale: see `rescaled`. option: prefix of the option names in errors: cfg or guidance.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: Sequence[int] | None = None
    rescale: float = 0.0
    option: str = "cfg"

    def at(self, t: float) -> bool:
        """Whether timestep t is guided: the scale is not 1, and t is in the interval."""
        return self.scale != 1.0 and (self.interval is None or self.interval[0] <= t <= self.interval[1])

    def check(self) -> None:
        """ValueError for numbers that are out of range or have no effect."""
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
        """ValueError for settings that this model does not support."""
        if self.scale != 1 and not guidable:
            raise ValueError(
                f"{self.option}_scale={self.scale}: this model was trained without label dropout, so it has no null "
                f"label to guide against; use {self.option}_scale 1"
            )
        if self.channels is not None and self.channels > latent_channels:
            raise ValueError(f"{self.option}_channels={self.channels}: the latent has {latent_channels} channels")


def guide(prediction: Tensor, latent_channels: int, guidance: Guidance) -> Tensor:
    """Stacked conditional and null predictions (2B, C or 2C, H, H) -> guided prediction (B, C or 2C, H, H).

    guided = null + scale * (conditional - null) on the guided channels, of C = latent_channels. All other channels,
    including the variance, are the conditional prediction. Given x, each of v, eps and x0 is an affine function of the
    others, so it does not matter which of them the model predicts.
    """
    channels = latent_channels if guidance.channels is None else guidance.channels
    conditional, null = prediction.chunk(2)
    mean = null[:, :channels] + guidance.scale * (conditional[:, :channels] - null[:, :channels])
    if guidance.rescale:
        mean = rescaled(mean, conditional[:, :channels], guidance.rescale)
    return torch.cat([mean, conditional[:, channels:]], dim=1)


def rescaled(mean: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """Guided mean (B, C, H, H), rescaled toward the conditional mean's standard deviation per sample.

    amount: 0 (unchanged) to 1 (same standard deviation). This avoids the overexposure of strong guidance (Lin et al.,
    2024, Sec. 3.4).
    """
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / mean.std(dim=(1, 2, 3), keepdim=True)
    return amount * ratio * mean + (1 - amount) * mean
