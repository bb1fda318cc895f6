"""Solvers: how a sampling run moves from timestep to timestep, given the network's prediction at each.

DDPM, DDIM (steps.py), Heun and Adams-Bashforth are ours; DPM-Solver++ (Lu et al., 2022) and UniPC (Zhao et al.,
2023) are diffusers'. All tensors are (B, C, H, H) float32.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fpdm.sampling.steps import ddim_step, ddpm_step, step_coefficients

MULTISTEP = ("dpm++", "unipc")
TWO_CALLS = ("heun",)  # model calls a step, but for the last one
SOLVERS = ("ddpm", "ddim", "ab2", *TWO_CALLS, *MULTISTEP)
PURE_NOISE = 2**-24  # alpha_bar that stands for 0 at the last timestep, where log-SNR would be infinite

# (position in the plan, x, predicted x0, predicted eps, the network's variance output or None) -> the next x
Solver = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def make_solver(
    name: str,
    alphas_cumprod: np.ndarray,
    timesteps: list[int],
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Solver:
    """A solver for one run along `timesteps`, one for each model call, as a plan for this solver lists them.

    alphas_cumprod: the diffusion's alpha_bar (T,). eta: DDIM's. step_noise: fresh noise of a step,
    for ddpm and for ddim with eta > 0. Those that are not ddpm or ddim remember earlier
    predictions: make one for each run.
    """
    if name not in SOLVERS:
        raise ValueError(f"sampler={name!r}: choose one of {', '.join(SOLVERS)}")
    if step_noise is None and (name == "ddpm" or eta > 0):
        raise ValueError(f"sampler={name}, eta={eta}: needs step_noise")
    if name in TWO_CALLS and timesteps[1::2] != timesteps[2::2]:
        raise ValueError(f"sampler={name}: needs a plan with two calls a step, make_plan(..., two_calls=True)")
    if name in MULTISTEP:
        return _multistep(name, alphas_cumprod[timesteps], timesteps)
    if name in ("ab2", "heun"):
        return (_heun if name == "heun" else _adams_bashforth)(_Angles(alphas_cumprod[timesteps]))
    coefficients = step_coefficients(alphas_cumprod, timesteps)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        noise = step_noise(i) if step_noise is not None and c.alpha_bar_next != 1 else None
        return ddpm_step(x, x0, variance, c, noise) if name == "ddpm" else ddim_step(x0, eps, c, eta, noise)

    return step


class _Angles:
    """The angles a = arccos sqrt(alpha_bar) of a run's timesteps and of the image, over which x moves at the rate v.

    Of x = cos a x0 + sin a eps the part that follows from a constant x0 and eps is exact, as in
    DDIM; what the second-order solvers estimate is the rest, the integral of what v deviates from
    it. Pure noise, a = pi / 2, is a start like any other, where log-SNR and sigma = tan a are infinite.
    """

    def __init__(self, alpha_bars: np.ndarray):
        self.angles = [float(a) for a in np.append(np.arccos(np.sqrt(alpha_bars)), 0.0)]

    def step(self, i: int) -> float:
        return self.angles[i + 1] - self.angles[i]

    def x(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return math.cos(self.angles[i]) * x0 + math.sin(self.angles[i]) * eps

    def v(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return math.cos(self.angles[i]) * eps - math.sin(self.angles[i]) * x0


def _heun(over: _Angles) -> Solver:
    """The deviation at a step's end from a second call there; the trapezoid rule, for it is 0 at the start."""
    expected_v = None  # at the end of the step in hand, by its first call

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected_v
        if i % 2:  # the second call, at the timestep that the first one went to
            return x + over.step(i - 1) / 2 * (over.v(i, x0, eps) - expected_v)
        expected_v = over.v(i + 1, x0, eps)
        return over.x(i + 1, x0, eps)

    return step


def _adams_bashforth(over: _Angles) -> Solver:
    """The deviation over a step foretold from that of the step before, as if it grew steadily."""
    expected_v = None  # at this timestep, by the call before

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected_v
        following = over.x(i + 1, x0, eps)
        if expected_v is not None:
            following = following + over.step(i) ** 2 / (2 * over.step(i - 1)) * (over.v(i, x0, eps) - expected_v)
        expected_v = over.v(i + 1, x0, eps)
        return following

    return step


def _multistep(name: str, alpha_bars: np.ndarray, timesteps: list[int]) -> Solver:
    """diffusers' scheduler on our timesteps and noise levels, fed with predicted x0.

    With x0 as the prediction nothing is divided by sqrt(alpha_bar), whatever the network
    predicts, and images that are clipped stay so.
    """
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler  # slow to import, and not always needed

    cls = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    scheduler = cls(prediction_type="sample", solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(len(timesteps))
    alpha_bars = np.maximum(
        alpha_bars, min(PURE_NOISE, alpha_bars[alpha_bars > 0].min(initial=1) / 4)
    )  # still distinct
    scheduler.sigmas = torch.tensor([*np.sqrt((1 - alpha_bars) / alpha_bars), 0.0], dtype=torch.float32)
    scheduler.timesteps = torch.tensor(timesteps)
    scheduler.num_inference_steps = len(timesteps)
    scheduler.set_begin_index(0)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        return scheduler.step(x0, scheduler.timesteps[i], x).prev_sample

    return step
