"""Losses of a prediction, and the Gaussian terms of the variational bound."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Per sample, (B,) float32 each: `total` = `mse` (weighted) + `vb` (bits per dimension; 0 without it).

    A learned weighting is not included: with one, `mse` is the plain error of what the network predicts.
    """

    total: Tensor
    mse: Tensor
    vb: Tensor


def interpolate_log_variance(fraction: Tensor, log_min: Tensor | float, log_max: Tensor | float) -> Tensor:
    """The network's variance output, -1..1, as a log variance between the two bounds."""
    weight = (fraction + 1) / 2
    return weight * log_max + (1 - weight) * log_min


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    log_ratio = log_variance2 - log_variance1
    return 0.5 * (log_ratio - 1 + torch.exp(-log_ratio) + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, in nats, of x in -1..1 under a Gaussian binned to 256 levels; elementwise."""
    inverse = torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp_min(1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The usual tanh approximation; smoother than erf in float32 tails, and what published losses use."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
