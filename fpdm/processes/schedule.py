"""Noise schedules of the discrete process, and its posterior tables; float64 throughout."""

import math
from typing import NamedTuple

import numpy as np

SCHEDULES = ("linear", "scaled-linear", "cosine")


class PosteriorTables(NamedTuple):
    """q(x_prev | x_t, x0) for a descending-noise chain of S steps, each (S,) float64.

    Its mean is `mean_x0 * x0 + mean_x * x_t`. Learned variances interpolate between
    `log_variance_min` (the posterior's) and `log_variance_max` (log beta).
    """

    mean_x0: np.ndarray
    mean_x: np.ndarray
    log_variance_min: np.ndarray
    log_variance_max: np.ndarray


def schedule_betas(schedule: str, beta_start: float, beta_end: float, timesteps: int) -> np.ndarray:
    """Betas (T,) float64. The cosine schedule (Nichol & Dhariwal, 2021) takes no end points."""
    if schedule == "linear":
        return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)
    if schedule == "scaled-linear":
        return np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), timesteps, dtype=np.float64) ** 2
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    f = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shift sqrt(ab) so that the last is 0, scale so that the first stays (Lin et al., 2023, Alg. 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def posterior_tables(alphas_cumprod: np.ndarray) -> PosteriorTables:
    """Tables for the chain whose alpha_bar, from least to most noise, is `alphas_cumprod` (S,)."""
    previous = np.append(1.0, alphas_cumprod[:-1])
    alphas = alphas_cumprod / previous
    betas = 1 - alphas
    variance = betas * (1 - previous) / (1 - alphas_cumprod)
    # The first variance is 0: the posterior of the last denoising step is a point. The log of
    # the next one is used, as in the published tables; no noise is added there anyway.
    floor = variance[1] if len(variance) > 1 else betas[0]
    return PosteriorTables(
        mean_x0=betas * np.sqrt(previous) / (1 - alphas_cumprod),
        mean_x=(1 - previous) * np.sqrt(alphas) / (1 - alphas_cumprod),
        log_variance_min=np.log(np.append(floor, variance[1:])),
        log_variance_max=np.log(betas),
    )
