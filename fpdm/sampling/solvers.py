"""Solvers: how a sampling run moves from timestep to timestep, given the network's prediction at each.

DDPM and DDIM are ours (steps.py); DPM-Solver++ (Lu et al., 2022) and UniPC (Zhao et al., 2023) are diffusers'.
All tensors are (B, C, H, H) float32.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fpdm.sampling.steps import StepCoefficients, ddim_step, ddpm_step

MULTISTEP = ("dpm++", "unipc")
SOLVERS = ("ddpm", "ddim", *MULTISTEP)
PURE_NOISE = 2**-24  # alpha_bar that stands for 0 at the last timestep, where log-SNR would be infinite

# (position in the plan, x, predicted x0, predicted eps, the network's variance output or None) -> the next x
Solver = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def make_solver(
    name: str,
    coefficients: list[StepCoefficients],
    timesteps: list[int],
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Solver:
    """A solver for one run along descending `timesteps`; those of the multistep ones should not go down to 0.

    eta: DDIM's. step_noise: fresh noise of a step, for ddpm and for ddim with eta > 0. The
    multistep solvers remember earlier predictions: make one for each run.
    """
    if name not in SOLVERS:
        raise ValueError(f"sampler={name!r}: choose one of {', '.join(SOLVERS)}")
    if step_noise is None and (name == "ddpm" or eta > 0):
        raise ValueError(f"sampler={name}, eta={eta}: needs step_noise")
    if name in MULTISTEP:
        return _multistep(name, coefficients, timesteps)

    def step(i: int, x: Tensor, x0: Tensor, eps: Tensor, variance: Tensor | None) -> Tensor:
        c = coefficients[i]
        noise = step_noise(i) if step_noise is not None and c.alpha_bar_next != 1 else None
        return ddpm_step(x, x0, variance, c, noise) if name == "ddpm" else ddim_step(x0, eps, c, eta, noise)

    return step


def _multistep(name: str, coefficients: list[StepCoefficients], timesteps: list[int]) -> Solver:
    """diffusers' scheduler on our timesteps and noise levels, fed with predicted x0.

    With x0 as the prediction nothing is divided by sqrt(alpha_bar), whatever the network
    predicts, and images that are clipped stay so.
    """
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler  # slow to import, and not always needed

    cls = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    scheduler = cls(prediction_type="sample", solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(len(timesteps))
    alpha_bars = np.array([c.alpha_bar for c in coefficients])
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
