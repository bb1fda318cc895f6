"""Power-function averages of the weights, and how stored ones make others (EDM2: Karras et al., 2024,
arXiv:2312.02696, Sec. 3).

The average at step t with exponent gamma is the sum over k = 1..t of the weights after step k, each times the integral
of (gamma + 1) s^gamma / t^(gamma + 1) over k - 1 < s < k. It is named by the standard deviation of that density, as a
share of t, because that says how long the average is.
"""

from typing import NamedTuple

import numpy as np


class Profile(NamedTuple):
    """An average at a step. std: its relative standard deviation."""

    step: int
    std: float


def relative_std(gamma: float) -> float:
    """sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2): standard deviation of the density (gamma + 1) s^gamma on 0..1."""
    return ((gamma + 1) / (gamma + 3)) ** 0.5 / (gamma + 2)


def exponent(std: float) -> float:
    """The exponent gamma >= 0 of a profile; ValueError for a std that only a negative one would have."""
    if not 0 < std <= relative_std(0):
        raise ValueError(f"std={std}: above 0, at most {relative_std(0):.3f}")
    inverse = std**-2  # (gamma + 2)^2 (gamma + 3) = inverse (gamma + 1), a polynomial with one root of at least 0
    return max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max(), 0.0)


def shares(profile: Profile, steps: int) -> np.ndarray:
    """(steps,) shares that the weights after steps 1, 2, ... have in an average; 0 after its own step."""
    risen = np.minimum(np.arange(steps + 1) / profile.step, 1) ** (exponent(profile.std) + 1)
    return np.diff(risen)


def combine(stored: list[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """How much of each stored average makes the wanted one: least squares over the shares of all steps.

    The paper minimises the same distance between the densities. With shares, the result is exact whenever some
    combination is. Returns the coefficients (len(stored),) and the relative error, |shares made - wanted| / |wanted|.
    """
    matrix = np.stack([shares(profile, wanted.step) for profile in stored], axis=1)  # (steps, stored)
    target = shares(wanted, wanted.step)
    coefficients = np.linalg.lstsq(matrix, target, rcond=None)[0]
    return coefficients, float(np.linalg.norm(matrix @ coefficients - target) / np.linalg.norm(target))
