"""Averages of the weights, in float32: exponential moving averages, and the power-function averages of EDM2."""

from copy import deepcopy

import torch
from torch import nn

from fpdm.config import OptimConfig
from fpdm.training.profiles import exponent


class Average:
    """A copy of the model whose weights follow the trained ones: average <- decay average + (1 - decay) weights.

    Float32 whatever the training precision: at decay 0.9999 a bfloat16 average would round
    every update away and never change.
    """

    def __init__(self, model: nn.Module):
        self.model = deepcopy(model).float().eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """The decay at `step`, from 0."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Call after optimizer step `step` (0 is the first), even if it was skipped and the weights are unchanged."""
        averages = list(self.model.parameters())
        weights = [weight.detach().float() for weight in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))


class EMA(Average):
    """The exponential moving average."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        return ramped_decay(self.decay, step)


class PowerAverage(Average):
    """The average of the weights after steps 1..t in proportion to a power of the step (Karras et al., 2024, Sec. 3.1):
    decay (1 - 1/t)^(gamma + 1). The random start has no share in it.

    std: relative standard deviation of the averaged steps, from which gamma follows.
    """

    def __init__(self, model: nn.Module, std: float):
        super().__init__(model)
        self.std, self.exponent = std, exponent(std)

    def decay_at(self, step: int) -> float:
        return (1 - 1 / (step + 1)) ** (self.exponent + 1)


def ramped_decay(decay: float, step: int) -> float:
    """Decay at `step`: rises from 0.1 to `decay`, so that the random start is soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def average_names(optim: OptimConfig) -> list[str]:
    """The folders of a checkpoint that hold averages. `ema` is the one to sample from."""
    return ["ema", *(f"ema-{decay}" for decay in optim.ema_extra), *map(power_name, optim.ema_profiles)]


def power_name(std: float) -> str:
    """The folder of a power-function average."""
    return f"ema-power-{std}"


def make_averages(optim: OptimConfig, model: nn.Module) -> dict[str, Average]:
    """The averages, in the order of their names."""
    averages = [EMA(model, decay) for decay in (optim.ema_decay, *optim.ema_extra)]
    averages += [PowerAverage(model, std) for std in optim.ema_profiles]
    return dict(zip(average_names(optim), averages, strict=True))
