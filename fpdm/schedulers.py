"""diffusers' schedulers for our processes: default ones, and checks whether another one fits."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from fpdm.processes import Diffusion, Flow, Process

PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
FLOW_PREDICTION = "flow_prediction"


def default_scheduler(process: Process) -> SchedulerMixin:
    """Euler on the process's own noise levels; over sigma, this is DDIM."""
    return _RULES[process.kind].default(process)


def check_scheduler(scheduler: SchedulerMixin, process: Process) -> None:
    """ValueError for a scheduler of another process, which would sample wrongly without an error."""
    if reason := _RULES[process.kind].against(scheduler, process):
        name = type(scheduler).__name__
        raise ValueError(
            f"scheduler {name}: {reason}; make it as {name}.from_config(pipe.scheduler.config), or choose another"
        )


def timestep_of(scheduler: SchedulerMixin, process: Process, t: Tensor) -> Tensor:
    """The process's timestep () for one of the scheduler's."""
    return _RULES[process.kind].timestep(t, scheduler.config.num_train_timesteps)


def set_steps(scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
    """Set the scheduler's timesteps. By itself, the Euler scheduler of flows would end with a step from t = 0.001."""
    even = {"sigmas": np.linspace(1, 1 / steps, steps)} if type(scheduler) is FlowMatchEulerDiscreteScheduler else {}
    scheduler.set_timesteps(steps, device=device, **even)


def takes_variance(scheduler: SchedulerMixin) -> bool:
    """Whether its step takes the learned variance in addition to the mean.

    The config alone does not tell: other schedulers keep unknown entries in it.
    """
    return _knows(scheduler, "variance_type") and scheduler.config.variance_type in ("learned", "learned_range")


def _knows(scheduler: SchedulerMixin, setting: str) -> bool:
    return setting in inspect.signature(type(scheduler).__init__).parameters


def _default_of_diffusion(process: Diffusion) -> EulerDiscreteScheduler:
    """diffusers' DDIMScheduler would compute the next timestep from a fixed stride, which is wrong if
    the number of steps does not divide the number of timesteps. If the last timestep is pure noise,
    the scheduler's alpha_bar there is a quarter of the one before instead of 0, so that schedulers
    over sigma or log-SNR can use this config too. Timesteps are trailing: for any number of steps
    they start at the last one.
    """
    alpha_bars = process.alphas_cumprod.copy()
    alpha_bars[-1] = max(alpha_bars[-1], alpha_bars[-2] / 4)
    betas = 1 - alpha_bars / np.append(1.0, alpha_bars[:-1])
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=process.timesteps,
        trained_betas=betas.tolist(),
        prediction_type=PREDICTION_TYPES[process.parametrisation],
        timestep_spacing="trailing",
    )
    scheduler.register_to_config(clip_sample=False)  # unknown to Euler; DDIM and DDPM would clip latents to -1..1
    return scheduler


def _against_diffusion(scheduler: SchedulerMixin, process: Diffusion) -> str | None:
    wanted, levels = PREDICTION_TYPES[process.parametrisation], getattr(scheduler, "alphas_cumprod", None)
    if levels is None:
        return "does not use the noise levels of discrete timesteps"
    same = np.allclose(levels.cpu().numpy(), process.alphas_cumprod, atol=1e-4)
    if same and scheduler.config.prediction_type == wanted:
        return None
    found = scheduler.config.prediction_type if same else "other noise levels"
    return f"{found}, this model needs {wanted} and the noise levels it was trained with"


def _default_of_flow(process: Flow) -> FlowMatchEulerDiscreteScheduler:
    """With two entries that it does not know, which DPM-Solver++, UniPC and others need to follow a flow."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(use_flow_sigmas=True, prediction_type=FLOW_PREDICTION)
    return scheduler


def _against_flow(scheduler: SchedulerMixin, process: Flow) -> str | None:
    by_setting = _knows(scheduler, "use_flow_sigmas") and scheduler.config.use_flow_sigmas
    if by_setting and scheduler.config.prediction_type == FLOW_PREDICTION:
        return None
    return None if type(scheduler).__name__.startswith("FlowMatch") else "does not follow a flow, as this model does"


class _Rules(NamedTuple):
    """What a process asks of schedulers. against: why one does not fit, or None. timestep: (the scheduler's, the number
    of its training timesteps) -> the process's."""

    default: Callable[[Process], SchedulerMixin]
    against: Callable[[SchedulerMixin, Process], str | None]
    timestep: Callable[[Tensor, int], Tensor]


_RULES = {
    Diffusion.kind: _Rules(_default_of_diffusion, _against_diffusion, lambda t, most: t),
    Flow.kind: _Rules(_default_of_flow, _against_flow, lambda t, most: t / most),
}
