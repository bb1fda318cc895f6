"""DDPM and DDIM steps against recorded numbers and against diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from fpdm.processes import Diffusion
from fpdm.processes.times import DiscreteTimes
from fpdm.sampling.steps import ddim_step, ddpm_mean_and_log_variance, ddpm_step, step_coefficients

close = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("kind", ["eps", "v_zsnr"])
@pytest.mark.parametrize("position", [0, 10, 19])
def test_against_recorded_steps(recorded, kind, position):
    values = {k.split("/")[1]: v for k, v in recorded("diffusion").items() if k.startswith(f"{kind}/")}
    diffusion = Diffusion(
        parametrisation="eps" if kind == "eps" else "v", zero_terminal_snr=kind != "eps", weighting="v"
    )
    times = DiscreteTimes().spaced(20)
    c = step_coefficients(diffusion.alphas_cumprod[times])[19 - position]
    x = values["ddim20_x"]
    mean, variance = diffusion.split(values["model_out"])
    x0, eps = diffusion.x0_and_eps(mean, x, diffusion.level(times[19 - position]))
    torch.testing.assert_close(ddim_step(x0, eps, c), values[f"ddim20_step{position}"], **close)
    ddpm_mean, log_variance = ddpm_mean_and_log_variance(x, x0, variance, c)
    torch.testing.assert_close(ddpm_mean, values[f"ddpm20_mean{position}"], **close)
    torch.testing.assert_close(log_variance, values[f"ddpm20_logvar{position}"], **close)


SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "timestep_spacing": "trailing",  # 999, 949, ... 49: starts at the last timestep and has one stride
}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_against_diffusers(eta):
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(20)
    diffusion = Diffusion(learn_sigma=False)
    times = scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x = theirs = torch.randn(2, 4, 8, 8, generator=generator)
    for t, c in zip(times, step_coefficients(diffusion.alphas_cumprod[times]), strict=True):
        prediction, noise = torch.randn(2, 2, 4, 8, 8, generator=generator).unbind()
        theirs = scheduler.step(prediction, t, theirs, eta=eta, variance_noise=noise if eta else None).prev_sample
        x = ddim_step(*diffusion.x0_and_eps(prediction, x, diffusion.level(t)), c, eta, noise)
        torch.testing.assert_close(x, theirs, atol=2e-4, rtol=2e-4)  # theirs rescales the schedule in float32


def test_ddpm_against_diffusers():
    scheduler = DDPMScheduler(**SCHEDULER, variance_type="learned_range")
    scheduler.set_timesteps(20)
    diffusion = Diffusion()
    times = scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x = theirs = torch.randn(2, 4, 8, 8, generator=generator)
    for i, (t, c) in enumerate(zip(times, step_coefficients(diffusion.alphas_cumprod[times]), strict=True)):
        prediction = torch.randn(2, 8, 8, 8, generator=generator)
        theirs = scheduler.step(prediction, t, theirs, generator=torch.Generator().manual_seed(i)).prev_sample
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i))
        mean, variance = diffusion.split(prediction)
        x0, _ = diffusion.x0_and_eps(mean, x, diffusion.level(t))
        if c.alpha_bar_next == 1:
            # diffusers adds noise at its last timestep, 49; ours goes to the image itself.
            x, theirs = ddpm_step(x, x0, variance, c, None), x0
        else:
            x = ddpm_step(x, x0, variance, c, noise)
        torch.testing.assert_close(x, theirs, atol=2e-4, rtol=2e-4)


def test_coefficients_are_finite_for_any_number_of_steps():
    for diffusion in (Diffusion(), Diffusion("cosine"), Diffusion(parametrisation="eps", zero_terminal_snr=False)):
        for steps in range(1, 1001):
            coefficients = np.array(step_coefficients(diffusion.alphas_cumprod[DiscreteTimes().spaced(steps)]))
            assert coefficients.shape == (steps, 6)
            assert np.isfinite(coefficients).all(), steps
            assert (coefficients[:, 5] >= coefficients[:, 4] - 1e-9).all()  # beta is the larger variance
