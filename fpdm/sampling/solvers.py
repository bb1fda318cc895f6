"""Solvers: how a sampling run moves from timestep to timestep, given the network's prediction at each.

DDPM, DDIM (steps.py), Euler, Heun, Adams-Bashforth and Euler-Maruyama are implemented here; DPM-Solver++ (Lu et al.,
2022) and UniPC (Zhao et al., 2023) are those of diffusers. All tensors are (B, C, H, W) float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.config import check_choice
from fpdm.processes import Level, Process
from fpdm.processes.times import TO_ZERO, Spacing
from fpdm.sampling.steps import ddim_step, ddpm_step, step_coefficients

PURE_NOISE = 2**-24  # replaces alpha_bar = 0 at the last timestep, where log-SNR would be infinite

# (position in the plan, x, predicted x0, predicted eps, the network's variance output or None) -> the next x
Advance = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Run(NamedTuple):
    """One run of a solver: one timestep and its level for each model call, descending, and the level of the image.

    eta: DDIM's. noise: step -> fresh noise (B, C, H, W), or None.
    """

    timesteps: list[float]
    levels: list[Level]  # (S + 1,)
    eta: float = 0.0
    noise: Callable[[int], Tensor] | None = None

    @property
    def alpha_bars(self) -> np.ndarray:
        """(S,) float64, at the timesteps."""
        return np.array([level.alpha_bar for level in self.levels[:-1]])


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
    process: Process,
    timesteps: list[float],
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Advance:
    """The solver `name` for one run along `timesteps`, which come from a plan for this solver.

    eta: DDIM's. step_noise: step -> fresh noise, for solvers that need it, and for ddim with eta > 0. Most solvers
    remember earlier predictions, so make a new one for each run.
    """
    check_choice("sampler", name, SOLVERS)
    solver = SOLVERS[name]
    if step_noise is None and solver.needs_noise(eta):
        raise ValueError(f"sampler={name}, eta={eta}: needs step_noise")
    if solver.spacing.two_calls and any(a != b for a, b in zip(timesteps[1::2], timesteps[2::2], strict=False)):
        raise ValueError(f"sampler={name}: needs a plan with two calls per step, Spacing(two_calls=True)")
    levels = [*map(process.level, timesteps), process.clean]
    return solver.make(Run(timesteps, levels, eta, step_noise))


def _ancestral(run: Run) -> Advance:
    """DDPM, with the learned variance if there is one. Divided by its scale, x follows the chain of every process."""
    coefficients = step_coefficients(run.alpha_bars)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        noise = run.noise(i) if c.alpha_bar_next != 1 else None
        return ddpm_step(x / run.levels[i].scale, x0, variance, c, noise) * run.levels[i + 1].scale

    return step


def _ddim(run: Run) -> Advance:
    """DDIM: x0 and eps stay as predicted over the step. In a flow, this is Euler's method."""
    coefficients = step_coefficients(run.alpha_bars)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        fresh = run.noise is not None and run.eta > 0 and c.alpha_bar_next != 1
        return ddim_step(x0, eps, c, run.eta, run.noise(i) if fresh else None) * run.levels[i + 1].scale

    return step


class _Path:
    """The path of a run over the levels' `place`, the variable u in which dx/du = signal' x0 + noise' eps.

    With x0 and eps constant over a step, x = signal x0 + noise eps is exact, as in DDIM. The second-order solvers
    estimate the rest: the integral of the deviation of dx/du from that. In the discrete process, u is the angle
    arccos sqrt(alpha_bar), and pure noise, u = pi / 2, needs no special case, although log-SNR and noise / signal are
    infinite there. In a flow, u is the time, and dx/du the velocity.
    """

    def __init__(self, levels: list[Level]):
        self.levels = levels

    def step(self, i: int) -> float:
        return self.levels[i + 1].place - self.levels[i].place

    def x(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return self.levels[i].signal * x0 + self.levels[i].noise * eps

    def slope(self, i: int, x0: Tensor, eps: Tensor) -> Tensor:
        return self.levels[i].signal_slope * x0 + self.levels[i].noise_slope * eps


def _euler(run: Run) -> Advance:
    path = _Path(run.levels)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        return x + path.step(i) * path.slope(i, x0, eps)

    return step


def _heun(run: Run) -> Advance:
    """Heun: a second call at the step's end gives the deviation there. Trapezoid rule; it is 0 at the step's start."""
    path = _Path(run.levels)
    expected = None  # slope at the end of the current step, from its first call

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected
        if i % 2:  # the second call, at the end of the step
            return x + path.step(i - 1) / 2 * (path.slope(i, x0, eps) - expected)
        expected = path.slope(i + 1, x0, eps)
        return path.x(i + 1, x0, eps)

    return step


def _adams_bashforth(run: Run) -> Advance:
    """Adams-Bashforth: the deviation over a step is extrapolated linearly from that of the previous step."""
    path = _Path(run.levels)
    expected = None  # slope at this timestep, from the previous call

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        nonlocal expected
        following = path.x(i + 1, x0, eps)
        if expected is not None:
            following = following + path.step(i) ** 2 / (2 * path.step(i - 1)) * (path.slope(i, x0, eps) - expected)
        expected = path.slope(i + 1, x0, eps)
        return following

    return step


def _stochastic(run: Run) -> Advance:
    """Euler-Maruyama for the reverse SDE (Ma et al., 2024, Eq. 5) with w = 2 `noise`, the published choice:
    x <- x - |du| (dx/du + w eps / (2 noise)) + sqrt(w |du|) z. The last step adds no z."""
    path = _Path(run.levels)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        length = -path.step(i)
        mean = x - length * (path.slope(i, x0, eps) + eps)
        if i + 2 == len(run.levels):
            return mean
        return mean + math.sqrt(2 * run.levels[i].noise * length) * run.noise(i)

    return step


def _dpm(run: Run) -> Advance:
    from diffusers import DPMSolverMultistepScheduler  # slow to import, and not always needed

    return _multistep(DPMSolverMultistepScheduler, run)


def _unipc(run: Run) -> Advance:
    from diffusers import UniPCMultistepScheduler

    return _multistep(UniPCMultistepScheduler, run)


def _multistep(scheduler_class: type, run: Run) -> Advance:
    """A scheduler of diffusers with our timesteps and noise levels. Its input is the predicted x0.

    With x0 as the prediction, nothing is divided by the signal, whatever the network predicts, and a clipped x0 stays
    clipped. The scheduler expects signal**2 + noise**2 = 1, so x is divided by its scale.
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
        stepped = scheduler.step(x0, scheduler.timesteps[i], x / run.levels[i].scale).prev_sample
        return stepped * run.levels[i + 1].scale

    return step


# Solvers by the name used in settings. To add a solver, add an entry.
SOLVERS = {
    "ddpm": Solver(_ancestral, "with the learned variance", random=True),
    "ddim": Solver(_ddim, "first order; Euler's method in a flow", eta=True),
    "ab2": Solver(_adams_bashforth, "Adams-Bashforth, second order"),
    "heun": Solver(_heun, "second order, two model calls per step", spacing=Spacing(two_calls=True)),
    "dpm++": Solver(_dpm, "DPM-Solver++(2M), second order in log-SNR", spacing=Spacing(down_to_zero=False)),
    "unipc": Solver(_unipc, "UniPC, second order in log-SNR", spacing=Spacing(down_to_zero=False)),
    "euler": Solver(_euler, "Euler, first order"),
    "sde": Solver(
        _stochastic, "Euler for the reverse SDE, noise at each step", spacing=Spacing(last=0.04), random=True
    ),
}
