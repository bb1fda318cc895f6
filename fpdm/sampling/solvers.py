"""Solvers: how a sampling run moves from timestep to timestep, given the network's prediction at each.

DDPM, DDIM (steps.py), Heun and Adams-Bashforth are implemented here; DPM-Solver++ (Lu et al., 2022) and UniPC (Zhao et
al., 2023) are those of diffusers. All tensors are (B, C, H, H) float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.config import check_choice
from fpdm.sampling.plan import TO_ZERO, Spacing
from fpdm.sampling.steps import ddim_step, ddpm_step, step_coefficients

PURE_NOISE = 2**-24  # replaces alpha_bar = 0 at the last timestep, where log-SNR would be infinite

# (position in the plan, x, predicted x0, predicted eps, the network's variance output or None) -> the next x
Advance = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Run(NamedTuple):
    """One run of a solver along `timesteps`: one for each model call, descending.

    alpha_bars: (S,) float64, at these timesteps. eta: DDIM's. noise: step -> fresh noise (B, C, H, H), or None.
    """

    timesteps: list[int]
    alpha_bars: np.ndarray
    eta: float = 0.0
    noise: Callable[[int], Tensor] | None = None


class Solver(NamedTuple):
    """make: Run -> Advance. about: a description for the help.

    spacing: of the plans that it needs. random: needs fresh noise at each step. eta: accepts an eta; needs noise if
    eta > 0.
    """

    make: Callable[[Run], Advance]
    about: str
    spacing: Spacing = TO_ZERO
    random: bool = False
    eta: bool = False

    def needs_noise(self, eta: float) -> bool:
        """Whether a run with this eta needs fresh noise."""
        return self.random or eta > 0


def make_solver(
    name: str,
    alphas_cumprod: np.ndarray,
    timesteps: list[int],
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Advance:
    """The solver `name` for one run along `timesteps`, which come from a plan for this solver.

    alphas_cumprod: the diffusion's alpha_bar (T,). eta: DDIM's. step_noise: step -> fresh noise, for ddpm, and for ddim
    with eta > 0. Solvers other than ddpm and ddim remember earlier predictions, so make a new one for each run.
    """
    check_choice("sampler", name, SOLVERS)
    solver = SOLVERS[name]
    if step_noise is None and solver.needs_noise(eta):
        raise ValueError(f"sampler={name}, eta={eta}: needs step_noise")
    if solver.spacing.two_calls and timesteps[1::2] != timesteps[2::2]:
        raise ValueError(f"sampler={name}: needs a plan with two calls per step, Spacing(two_calls=True)")
    return solver.make(Run(timesteps, alphas_cumprod[timesteps], eta, step_noise))


def _ancestral(run: Run) -> Advance:
    """DDPM, with the learned variance."""
    coefficients = step_coefficients(run.alpha_bars)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        return ddpm_step(x, x0, variance, c, run.noise(i) if c.alpha_bar_next != 1 else None)

    return step


def _ddim(run: Run) -> Advance:
    coefficients = step_coefficients(run.alpha_bars)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        fresh = run.noise is not None and run.eta > 0 and c.alpha_bar_next != 1
        return ddim_step(x0, eps, c, run.eta, run.noise(i) if fresh else None)

    return step


class _Angles:
    """The angles a = arccos sqrt(alpha_bar) of a run's timesteps and of the image. In this variable, dx/da = v.

    With x0 and eps constant over a step, x = cos a x0 + sin a eps is exact, as in DDIM. The second-order solvers
    estimate the rest: the integral of the deviation of v from that. Pure noise, a = pi / 2, needs no special case,
    although log-SNR and sigma = tan a are infinite there.
    """

    def __init__(self, alpha_bars: np.ndarray):
        self.angles = [float(a) for a in np.append(np.arccos(np.sqrt(alpha_bars)), 0.0)]

    def step(self, i: int) -> float:
        return self.angles[i + 1] - self.angles[i]

    def x(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return math.cos(self.angles[i]) * x0 + math.sin(self.angles[i]) * eps

    def v(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return math.cos(self.angles[i]) * eps - math.sin(self.angles[i]) * x0


def _heun(run: Run) -> Advance:
    """Heun: a second call at the step's end gives the deviation there. Trapezoid rule; it is 0 at the step's start."""
    over = _Angles(run.alpha_bars)
    expected_v = None  # at the end of the current step, from its first call

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected_v
        if i % 2:  # the second call, at the end of the step
            return x + over.step(i - 1) / 2 * (over.v(i, x0, eps) - expected_v)
        expected_v = over.v(i + 1, x0, eps)
        return over.x(i + 1, x0, eps)

    return step


def _adams_bashforth(run: Run) -> Advance:
    """Adams-Bashforth: the deviation over a step is extrapolated linearly from that of the previous step."""
    over = _Angles(run.alpha_bars)
    expected_v = None  # at this timestep, from the previous call

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected_v
        following = over.x(i + 1, x0, eps)
        if expected_v is not None:
            following = following + over.step(i) ** 2 / (2 * over.step(i - 1)) * (over.v(i, x0, eps) - expected_v)
        expected_v = over.v(i + 1, x0, eps)
        return following

    return step


def _dpm(run: Run) -> Advance:
    from diffusers import DPMSolverMultistepScheduler  # slow to import, and not always needed

    return _multistep(DPMSolverMultistepScheduler, run)


def _unipc(run: Run) -> Advance:
    from diffusers import UniPCMultistepScheduler

    return _multistep(UniPCMultistepScheduler, run)


def _multistep(scheduler_class: type, run: Run) -> Advance:
    """A scheduler of diffusers with our timesteps and noise levels. Its input is the predicted x0.

    With x0 as the prediction, nothing is divided by sqrt(alpha_bar), whatever the network predicts, and a clipped x0
    stays clipped.
    """
    scheduler = scheduler_class(prediction_type="sample", solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(len(run.timesteps))
    lowest = min(PURE_NOISE, run.alpha_bars[run.alpha_bars > 0].min(initial=1) / 4)  # below the others
    alpha_bars = np.maximum(run.alpha_bars, lowest)
    scheduler.sigmas = torch.tensor([*np.sqrt((1 - alpha_bars) / alpha_bars), 0.0], dtype=torch.float32)
    scheduler.timesteps = torch.tensor(run.timesteps)
    scheduler.num_inference_steps = len(run.timesteps)
    scheduler.set_begin_index(0)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        return scheduler.step(x0, scheduler.timesteps[i], x).prev_sample

    return step


# Solvers by the name used in settings. To add a solver, add an entry.
SOLVERS = {
    "ddpm": Solver(_ancestral, "with the learned variance", random=True),
    "ddim": Solver(_ddim, "first order", eta=True),
    "ab2": Solver(_adams_bashforth, "Adams-Bashforth, second order"),
    "heun": Solver(_heun, "second order, two model calls per step", spacing=Spacing(two_calls=True)),
    "dpm++": Solver(_dpm, "DPM-Solver++(2M), second order in log-SNR", spacing=Spacing(down_to_zero=False)),
    "unipc": Solver(_unipc, "UniPC, second order in log-SNR", spacing=Spacing(down_to_zero=False)),
}
