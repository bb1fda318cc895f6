"""Power-function averages of the weights, and how stored ones make others (EDM2: Karras et al., 2024,
arXiv:2312.02696, Sec. 3).

The average at step t with exponent gamma is the sum over k = 1..t of the weights after step k, each times the integral
of (gamma + 1) s^gamma / t^(gamma + 1) over k - 1 < s < k. It is named by the standard deviation of that density, as a
share of t, because that says how long the average is.
"""

from typing import NamedTuple

import numpy as np

ROWS = 4096  # steps at a time


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
    return _shares(np.array([profile.step]), np.array([exponent(profile.std)]), 0, steps)[:, 0]


def _shares(ends: np.ndarray, exponents: np.ndarray, first: int, last: int) -> np.ndarray:
    """(last - first, N) shares that the weights after steps first + 1 to last have in N averages (N,)."""
    risen = np.minimum(np.arange(first, last + 1)[:, None] / ends, 1) ** (exponents + 1)
    return np.diff(risen, axis=0)


def combine(stored: list[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """How much of each stored average makes the wanted one: least squares over the shares of all steps.

    The paper minimises the same distance between the densities. With shares, the result is exact whenever some
    combination is. Returns the coefficients (len(stored),) and the relative error, |shares made - wanted| / |wanted|.

    The matrix (steps, len(stored) + 1) of all shares can be too large for the memory, so it is reduced to the triangle
    of its QR decomposition some rows at a time. Products with itself would be smaller still, but lose half the digits.
    """
    profiles = [*stored, wanted]
    ends, exponents = np.array([one.step for one in profiles]), np.array([exponent(one.std) for one in profiles])
    triangle = np.empty((0, len(profiles)))
    for first in range(0, wanted.step, ROWS):
        rows = _shares(ends, exponents, first, min(first + ROWS, wanted.step))
        triangle = np.linalg.qr(np.concatenate([triangle, rows]), mode="r")
    matrix, target = triangle[:, :-1], triangle[:, -1]
    smallest = np.finfo(float).eps * max(wanted.step, len(stored))  # as for the whole matrix
    coefficients = np.linalg.lstsq(matrix, target, rcond=smallest)[0]
    return coefficients, float(np.linalg.norm(matrix @ coefficients - target) / np.linalg.norm(target))
