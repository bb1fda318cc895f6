"""The linear interpolant (rectified flow): x_t = (1 - t) x0 + t eps for t in 0..1, and its velocity eps - x0.

Lipman et al., 2023; Liu et al., 2023; the linear path of SiT (Ma et al., 2024), whose time runs the other way.
B batch, C channels, H height and width.
"""

import math

import torch
from torch import Tensor

from fpdm.processes.draws import TimestepDraw
from fpdm.processes.level import Level
from fpdm.processes.losses import Losses
from fpdm.processes.times import ContinuousTimes

WEIGHTING = "v"


class Flow:
    """The process of a network that predicts the velocity v = eps - x0, which is dx_t / dt.

    time_scale: the network gets time_scale * t; 1000 is the range of the discrete timesteps.
    draw, draw_mean, draw_deviation: how training draws t, see fpdm.processes.draws.
    """

    kind = "flow"
    predicts = "velocity"
    learn_sigma = False
    weighting = WEIGHTING
    clean = Level(alpha_bar=1.0, signal=1.0, noise=0.0, place=0.0, signal_slope=-1.0, noise_slope=1.0)

    def __init__(
        self, time_scale: float = 1000.0, draw: str = "uniform", draw_mean: float = 0.0, draw_deviation: float = 1.0
    ):
        if not 0 < time_scale < math.inf:
            raise ValueError(f"time_scale={time_scale}: must be positive and finite")
        self.time_scale = time_scale
        self.timestep_draw = TimestepDraw(draw, draw_mean, draw_deviation)
        self.timestep_draw.check()

    def times(self, shift: float = 1.0) -> ContinuousTimes:
        """What sampling can visit, with this shift."""
        return ContinuousTimes(shift)

    def level(self, t: float) -> Level:
        """The noise level at time t."""
        signal, noise = 1.0 - t, float(t)
        scale = math.hypot(signal, noise)
        return Level((signal / scale) ** 2, signal, noise, noise, -1.0, 1.0, scale)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network sees of times t (B,): (B,) float32."""
        return self.time_scale * t

    def uniform(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Uniform times (count,) float32 in 0..1."""
        return torch.rand(count, generator=generator, device=device)

    def at_sigma(self, sigma: Tensor) -> Tensor:
        """Times (B,) float32 at which noise / signal = t / (1 - t) is this (B,); infinity is pure noise, 1."""
        return torch.where(sigma.isinf(), 1.0, sigma / (1 + sigma))

    def at_share(self, share: Tensor) -> Tensor:
        """Times (B,) float32 at these shares of the time, 0 to 1."""
        return share.float()

    def part(self, t: Tensor, parts: int) -> Tensor:
        """Number (B,) of the part, out of so many equal ones, in which each time is."""
        return (t * parts).long().clamp_max(parts - 1)

    def cleaner(self, t: Tensor, gap: Tensor) -> Tensor:
        """Times (B,) that are nearer to the image by these shares (B,) of the time, 0 at least."""
        return (t - gap).clamp_min(0)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = (1 - t) x0 + t noise; all (B, C, H, W), t (B,)."""
        t = t[:, None, None, None]
        return (1 - t) * x0 + t * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict (B, C, H, W): the velocity."""
        return noise - x0

    def split(self, prediction: Tensor) -> tuple[Tensor, None]:
        """The whole prediction (B, C, H, W), and no variance."""
        return prediction, None

    def x0_and_eps(self, mean: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Clean latent and noise, both (B, C, H, W), that the velocity `mean` predicts at x."""
        return x - level.noise * mean, x + level.signal * mean

    def mean_of(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """The velocity that predicts the clean latent x0 at x; not at t = 0."""
        return (x - x0) / level.noise

    def losses(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """Per-sample losses (B,) of a prediction (B, C, H, W): the mean squared error of the velocity."""
        if prediction.shape != x0.shape:
            raise ValueError(
                f"prediction has {prediction.shape[1]} channels, a flow of {x0.shape[1]} latent channels needs "
                f"{x0.shape[1]}: it has no learned variance (learn_sigma=false)"
            )
        mse = self.distance(prediction, self.target(x0, noise, t), t)
        return Losses(mse, mse, torch.zeros_like(mse))

    def distance(self, prediction: Tensor, other: Tensor, t: Tensor) -> Tensor:
        """Mean squared distance (B,) between two predictions (B, C, H, W)."""
        return (prediction.float() - other.float()).square().flatten(1).mean(1)
