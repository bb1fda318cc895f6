"""diffusers' schedulers for our diffusion: a default one, and a check whether another one fits."""

import inspect

import numpy as np
from diffusers import EulerDiscreteScheduler, SchedulerMixin

from fpdm.diffusion import Diffusion

PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}


def default_scheduler(diffusion: Diffusion) -> EulerDiscreteScheduler:
    """Euler over sigma, which is DDIM, on this diffusion's own noise levels.

    diffusers' DDIMScheduler would compute the next timestep from a fixed stride, which is wrong if
    the number of steps does not divide the number of timesteps. If the last timestep is pure noise,
    the scheduler's alpha_bar there is a quarter of the one before instead of 0, so that schedulers
    over sigma or log-SNR can use this config too. Timesteps are trailing: for any number of steps
    they start at the last one.
    """
    alpha_bars = diffusion.alphas_cumprod.copy()
    alpha_bars[-1] = max(alpha_bars[-1], alpha_bars[-2] / 4)
    betas = 1 - alpha_bars / np.append(1.0, alpha_bars[:-1])
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=diffusion.timesteps,
        trained_betas=betas.tolist(),
        prediction_type=PREDICTION_TYPES[diffusion.parametrisation],
        timestep_spacing="trailing",
    )
    scheduler.register_to_config(clip_sample=False)  # unknown to Euler; DDIM and DDPM would clip latents to -1..1
    return scheduler


def check_scheduler(scheduler: SchedulerMixin, diffusion: Diffusion) -> None:
    """ValueError for a scheduler of another diffusion, which would sample wrongly without an error."""
    wanted, name = PREDICTION_TYPES[diffusion.parametrisation], type(scheduler).__name__
    levels = getattr(scheduler, "alphas_cumprod", None)
    if levels is None:
        raise ValueError(f"scheduler {name}: does not use the noise levels of discrete timesteps; choose another")
    same = np.allclose(levels.cpu().numpy(), diffusion.alphas_cumprod, atol=1e-4)
    if not same or scheduler.config.prediction_type != wanted:
        found = scheduler.config.prediction_type if same else "other noise levels"
        raise ValueError(
            f"scheduler {name}: {found}, this model needs {wanted} and the noise levels it was trained with; "
            f"make it as {name}.from_config(pipe.scheduler.config)"
        )


def takes_variance(scheduler: SchedulerMixin) -> bool:
    """Whether its step takes the learned variance in addition to the mean.

    The config alone does not tell: other schedulers keep unknown entries in it.
    """
    known = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
    return known and scheduler.config.variance_type in ("learned", "learned_range")
