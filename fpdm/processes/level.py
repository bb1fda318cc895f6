"""The noise level of one timestep, as samplers and solvers use it; the same for every process."""

from typing import NamedTuple


class Level(NamedTuple):
    """x = signal * x0 + noise * eps, with float64 numbers.

    alpha_bar: SNR / (1 + SNR), signal**2 where signal**2 + noise**2 = 1.
    place: the variable in which the path of fixed x0 and eps is followed: the process's time, or the angle
        arccos(signal). It falls from noise to image.
    signal_slope, noise_slope: derivatives of signal and noise by `place`.
    scale: sqrt(signal**2 + noise**2); x / scale is at the same alpha_bar in a process where that is 1.
    """

    alpha_bar: float
    signal: float
    noise: float
    place: float
    signal_slope: float
    noise_slope: float
    scale: float = 1.0
