"""How training draws timesteps. A new way is one more entry of DRAWS."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """about: for the help. make: normal numbers (B,) -> shares of the process's time, from 0 (image) to 1 (noise), or
    noise levels noise / signal if `sigma`; None for uniform timesteps."""

    about: str
    make: Callable[[Tensor], Tensor] | None = None
    sigma: bool = False


DRAWS = {
    "uniform": Draw("all timesteps alike"),
    "logit-normal": Draw("the share of the time is the sigmoid of a normal number", torch.sigmoid),
    "log-normal": Draw("the logarithm of noise / signal is a normal number", torch.exp, sigma=True),
}


class TimestepDraw(NamedTuple):
    """A draw by its name, with the mean and the standard deviation of its normal numbers."""

    name: str = "uniform"
    mean: float = 0.0
    deviation: float = 1.0

    def check(self) -> None:
        """ValueError for an unknown draw, or for numbers that are out of range or not used."""
        if self.name not in DRAWS:
            raise ValueError(f"draw={self.name!r}: choose one of {', '.join(DRAWS)}")
        if not self.deviation > 0:
            raise ValueError(f"draw_deviation={self.deviation}: must be positive")
        if DRAWS[self.name].make is None and (self.mean, self.deviation) != (0, 1):
            raise ValueError(
                f"draw_mean={self.mean}, draw_deviation={self.deviation} with draw={self.name}, which uses neither; "
                "leave them out, or choose another draw"
            )


def draw_timesteps(process, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Timesteps (count,) of a process for training, by its `timestep_draw`."""
    chosen, on = process.timestep_draw, {"generator": generator, "device": device}
    draw = DRAWS[chosen.name]
    if draw.make is None:
        return process.uniform(count, **on)
    drawn = draw.make(chosen.mean + chosen.deviation * torch.randn(count, **on))
    return process.at_sigma(drawn) if draw.sigma else process.at_share(drawn)
