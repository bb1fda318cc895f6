"""Loss weightings: how much the squared error counts at each timestep. A new one is one more entry of WEIGHTINGS.

B samples, T timesteps. alpha_bar (T,) is the schedule's cumulative product in float64, from least to most noise; under
zero terminal SNR the last is 0. SNR = alpha_bar / (1 - alpha_bar).

A fixed weighting is a function of alpha_bar and of gamma, the setting diffusion.min_snr_gamma. It returns the weights
(T,) of the squared error of x0. The diffusion turns them into weights of what the network predicts.

A learned weighting is a class: an nn.Module, made with alpha_bar. It is called with the plain mean squared error of
what the network predicts (B,) and with timesteps (B,), and returns what is minimised instead of that error (B,). Its
parameters are trained with the network's and saved in a checkpoint's trainer.pt; a sampled model does not need them.
The entry must be the class itself: any other callable, such as a functools.partial of a class, counts as fixed.
"""

from collections.abc import Callable

import numpy as np
from torch import nn


def plain_v(alpha_bar: np.ndarray, gamma: float) -> np.ndarray:
    """The plain error of v. It trains the last timestep, where sampling starts, like any other."""
    return _snr(alpha_bar) + 1


def plain_eps(alpha_bar: np.ndarray, gamma: float) -> np.ndarray:
    """The plain error of eps: 0 at the last timestep under zero terminal SNR."""
    return _snr(alpha_bar)


def plain_x0(alpha_bar: np.ndarray, gamma: float) -> np.ndarray:
    """The plain error of x0."""
    return np.ones_like(alpha_bar)


def min_snr(alpha_bar: np.ndarray, gamma: float) -> np.ndarray:
    """min(SNR, gamma) (Hang et al., 2023): 0 at the last timestep under zero terminal SNR."""
    return np.minimum(_snr(alpha_bar), gamma)


def p2(alpha_bar: np.ndarray, gamma: float) -> np.ndarray:
    """SNR sqrt(1 - alpha_bar), as in the published FPDM code: 0 at the last timestep under zero terminal SNR."""
    return _snr(alpha_bar) * np.sqrt(1 - alpha_bar)


def is_learned(weighting: str) -> bool:
    """Whether a weighting has parameters of its own: its entry is a class."""
    return isinstance(WEIGHTINGS[weighting], type)


def _snr(alpha_bar: np.ndarray) -> np.ndarray:
    return alpha_bar / (1 - alpha_bar)


WEIGHTINGS: dict[str, Callable[[np.ndarray, float], np.ndarray] | type[nn.Module]] = {
    "v": plain_v,
    "eps": plain_eps,
    "x0": plain_x0,
    "min-snr": min_snr,
    "p2": p2,
}
