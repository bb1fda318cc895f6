"""One denoising step, as pure functions: DDPM (Ho et al., 2020) and DDIM (Song et al., 2021).

All tensors are (B, C, H, W) float32; coefficients are float64 numbers of the step.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fpdm.processes.losses import interpolate_log_variance
from fpdm.processes.schedule import posterior_tables


class StepCoefficients(NamedTuple):
    """Coefficients of one step from alpha_bar to alpha_bar_next (1 for the image); see PosteriorTables."""

    alpha_bar: float
    alpha_bar_next: float
    mean_x0: float
    mean_x: float
    log_variance_min: float
    log_variance_max: float


def step_coefficients(alpha_bars: np.ndarray) -> list[StepCoefficients]:
    """Coefficients of each step along descending timesteps. alpha_bars: (S,), those of the model at these timesteps."""
    chain = alpha_bars[::-1]  # ascending noise
    columns = (chain, np.append(1.0, chain[:-1]), *posterior_tables(chain))
    return [StepCoefficients(*map(float, row)) for row in zip(*columns, strict=True)][::-1]


def ddpm_mean_and_log_variance(
    x: Tensor, x0: Tensor, variance: Tensor | None, c: StepCoefficients
) -> tuple[Tensor, Tensor | float]:
    """Mean and log variance of p(x_next | x).

    variance: the second half of the network's output, -1..1, which interpolates between the posterior's variance and
    beta; None for the posterior's.
    """
    mean = c.mean_x0 * x0 + c.mean_x * x
    if variance is None:
        return mean, c.log_variance_min
    return mean, interpolate_log_variance(variance, c.log_variance_min, c.log_variance_max)


def ddpm_step(x: Tensor, x0: Tensor, variance: Tensor | None, c: StepCoefficients, noise: Tensor | None) -> Tensor:
    """Ancestral step with fresh `noise`. The step to the image adds no noise; None is enough there."""
    mean, log_variance = ddpm_mean_and_log_variance(x, x0, variance, c)
    if c.alpha_bar_next == 1:
        return mean
    deviation = (0.5 * log_variance).exp() if isinstance(log_variance, Tensor) else math.exp(0.5 * log_variance)
    return mean + deviation * noise


def ddim_step(x0: Tensor, eps: Tensor, c: StepCoefficients, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """DDIM's Eq. 12: deterministic at eta 0; eta 1 has DDPM's posterior variance and needs fresh `noise`."""
    sigma = eta * ddim_sigma(c)
    mean = math.sqrt(c.alpha_bar_next) * x0 + math.sqrt(max(1 - c.alpha_bar_next - sigma**2, 0.0)) * eps
    return mean + sigma * noise if sigma > 0 else mean


def ddim_sigma(c: StepCoefficients) -> float:
    """DDIM's Eq. 16 at eta 1."""
    return math.sqrt((1 - c.alpha_bar_next) / (1 - c.alpha_bar) * (1 - c.alpha_bar / c.alpha_bar_next))
