"""Classifier-free guidance (Ho & Salimans, 2022), and internal guidance by the model's own early exit."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.config import check_range, limits
from fpdm.cost import ForwardCost
from fpdm.processes.times import THOUSAND, ContinuousTimes, DiscreteTimes


class InternalGuidance(NamedTuple):
    """Settings of internal guidance: the prediction D_i of an early exit takes the place of a weaker model's,
    D = D_i + scale * (D_last - D_i) (arXiv:2512.24176).

    scale: 1 for none. exit: number of block passes before the exit; None for that of the model's early head, or,
    without one, after the first update (a DiT needs a number then). interval: lowest and highest guided timestep; None
    for all.
    """

    scale: float = 1.0
    exit: int | None = None
    interval: Sequence[float] | None = None

    def at(self, t: float) -> bool:
        """Whether timestep t is guided."""
        return self.scale != 1.0 and _within(t, self.interval)

    def number(self, early_head: int, cost: ForwardCost) -> int:
        """The exit that guides, in a model of this cost with an early head at this exit (0 for none)."""
        return self.exit or early_head or int(cost.first_exit)

    def check(self) -> None:
        """ValueError for numbers that are out of range or have no effect."""
        check_range(0, limits.FACTOR, internal_guidance=self.scale)
        check_range(1, limits.ITERATIONS, internal_exit=self.exit)
        _check_interval("internal_interval", self.interval)
        for name in ("exit", "interval"):
            value = getattr(self, name)
            if value is not None and self.scale == 1:
                raise ValueError(
                    f"internal_{name}={value} with internal_guidance=1: nothing is guided; give an internal_guidance"
                )

    def check_calls(self, early_head: int, cost: ForwardCost, calls: Iterable[tuple[float, int | None]]) -> None:
        """ValueError if the exit that guides is the last one in all guided calls, so that it would change nothing, or
        if it is one from which no training predicts.

        early_head, cost: of the model. calls: timestep and most updates of each; None for an explicit model (DiT).
        """
        number = self.number(early_head, cost)
        if self.scale == 1 or number == early_head:
            return
        if self.exit is None and not cost.iterative:
            raise ValueError(
                f"internal_guidance={self.scale}: this model has no early head (model.early_head), and usually trains "
                "only its last block to be predicted from; if others were trained (sjfb.supervise), give the "
                "internal_exit"
            )
        last = max((int(cost.last_exit(updates)) for t, updates in calls if self.at(t)), default=0)
        if number >= last:
            remedy = "give more iterations" if cost.iterative else "give a smaller exit"
            raise ValueError(
                f"internal_guidance={self.scale} with exit {number}: the last exit of a guided call is {last}, so this "
                f"one guides nothing; {remedy}, or leave it out"
            )
        first, each = int(cost.first_exit), max(cost.update_blocks, 1)
        if number < first or (number - first) % each:
            raise ValueError(
                f"internal_exit={number}: without a head of its own (model.early_head), nothing was trained to predict "
                f"from there; give {first}, after the first update, or one that is a multiple of {each} more"
            )


class Guidance(NamedTuple):
    """Guidance settings of a run.

    scale: 1 for none (0 would sample without labels). channels: number of latent channels, from the first, that are
    guided; None for all. interval: lowest and highest guided timestep; None for all (Kynkäänniemi et al., 2024).
    rescale: see `rescaled`. option: prefix of the option names in errors: cfg or guidance. internal: internal guidance,
    which acts on the conditional and on the null prediction, before this one.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: Sequence[float] | None = None
    rescale: float = 0.0
    option: str = "cfg"
    internal: InternalGuidance = InternalGuidance()

    def at(self, t: float) -> bool:
        """Whether timestep t is guided: the scale is not 1, and t is in the interval."""
        return self.scale != 1.0 and _within(t, self.interval)

    def check(self) -> None:
        """ValueError for numbers that are out of range or have no effect."""
        check_range(0, limits.FACTOR, **{f"{self.option}_scale": self.scale})
        check_range(1, limits.LATENT, **{f"{self.option}_channels": self.channels})
        _check_interval(f"{self.option}_interval", self.interval)
        check_range(0, 1, guidance_rescale=self.rescale)
        self.internal.check()
        settings = {"channels": self.channels, "interval": self.interval, "rescale": self.rescale}
        for name, value in settings.items():
            if value and self.scale == 1:
                option = "guidance" if name == "rescale" else self.option
                raise ValueError(
                    f"{option}_{name}={value} with {self.option}_scale=1: nothing is guided; give a {self.option}_scale"
                )

    def check_calls(
        self,
        times: DiscreteTimes | ContinuousTimes,
        early_head: int,
        cost: ForwardCost,
        calls: Sequence[tuple[float, int | None]],
    ) -> None:
        """ValueError for intervals that go beyond the timesteps of the process, or that contain none of a run's, and as
        `InternalGuidance.check_calls`. times: of the process. The others are as there."""
        for name, kind in ((self.option, self), ("internal", self.internal)):
            said = f"{name}_interval={kind.interval}"
            if kind.interval is not None and kind.interval[1] > times.largest:
                raise ValueError(
                    f"{said}: this model's timesteps are 0 to {times.largest:g}; give the lowest and the highest "
                    f"guided one, as in {times.example}"
                )
            if kind.scale != 1 and not any(kind.at(t) for t, _ in calls):
                raise ValueError(f"{said}: none of the timesteps {[t for t, _ in calls]} is in it")
        self.internal.check_calls(early_head, cost, calls)

    def check_model(self, guidable: bool, latent_channels: int, blocks: int | None = None) -> None:
        """ValueError for settings that this model does not support. blocks: of an explicit model (DiT)."""
        exit_ = self.internal.exit
        if exit_ is not None and blocks is not None and exit_ > blocks:
            raise ValueError(f"internal_exit={exit_}: this model has {blocks} blocks; give at most that")
        if self.scale != 1 and not guidable:
            raise ValueError(
                f"{self.option}_scale={self.scale}: this model was trained without label dropout, so it has no null "
                f"label to guide against; use {self.option}_scale 1"
            )
        if self.channels is not None and self.channels > latent_channels:
            raise ValueError(f"{self.option}_channels={self.channels}: the latent has {latent_channels} channels")


def _within(t: float, interval: Sequence[float] | None) -> bool:
    return interval is None or interval[0] <= t <= interval[1]


def _check_interval(name: str, interval: Sequence[float] | None) -> None:
    check_range(0, limits.TIMESTEPS, **{name: interval})
    if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
        raise ValueError(
            f"{name}={interval}: the lowest and the highest guided timestep, as in {THOUSAND.example}, or in a flow "
            f"{ContinuousTimes.example}"
        )


def guide_internally(last: Tensor, early: Tensor, latent_channels: int, scale: float) -> Tensor:
    """Predictions (B, C or 2C, H, W) of the last iterate and of an early one -> early + scale * (last - early).

    A learned variance is that of the last iterate.
    """
    mean = early[:, :latent_channels] + scale * (last[:, :latent_channels] - early[:, :latent_channels])
    return torch.cat([mean, last[:, latent_channels:]], dim=1)


def guide(prediction: Tensor, latent_channels: int, guidance: Guidance) -> Tensor:
    """Stacked conditional and null predictions (2B, C or 2C, H, W) -> guided prediction (B, C or 2C, H, W).

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
    """Guided mean (B, C, H, W), rescaled toward the conditional mean's standard deviation per sample.

    amount: 0 (unchanged) to 1 (same standard deviation). This avoids the overexposure of strong guidance (Lin et al.,
    2024, Sec. 3.4).
    """
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / mean.std(dim=(1, 2, 3), keepdim=True)
    return amount * ratio * mean + (1 - amount) * mean
