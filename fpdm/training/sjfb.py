"""Stochastic Jacobian-Free Backpropagation (Sec. 3.4, Alg. 1): how many updates a step runs."""

from typing import NamedTuple

import numpy as np

from fpdm.config import SJFBConfig
from fpdm.seeding import key


class Iterations(NamedTuple):
    """n updates without gradient, then m with."""

    n: int
    m: int


def draw_iterations(config: SJFBConfig, seed: int, step: int) -> Iterations:
    """(n, m) of a training step: a function of (seed, step), so equal on every rank.

    Equal draws also matter for speed: with independent ones every step would wait for
    the rank with the most updates.
    """
    if config.variant == "jfb":
        return Iterations(config.no_grad, 1)
    if config.variant == "multi-step":
        return Iterations(config.no_grad, config.grad)
    generator = np.random.Generator(np.random.Philox(key("sjfb", seed, step)))
    n = generator.integers(0, config.no_grad, endpoint=True)
    m = generator.integers(1, config.grad, endpoint=True)
    return Iterations(int(n), int(m))


def mean_iterations(config: SJFBConfig) -> tuple[float, float]:
    """Expected n and m of a step."""
    if config.variant == "jfb":
        return config.no_grad, 1
    if config.variant == "multi-step":
        return config.no_grad, config.grad
    return config.no_grad / 2, (1 + config.grad) / 2
