"""The multistep solvers on a Gaussian whose exact flow is known, and against diffusers' own use of its schedulers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from fpdm.diffusion import Diffusion
from fpdm.sampling.plan import make_plan
from fpdm.sampling.sampler import sample

MEAN, STD = 0.7, 0.4


def exact(diffusion):
    """E[x0 | x_t] of x0 ~ N(MEAN, STD^2), as v."""

    def denoise(x, t, y, **_):
        ab = float(diffusion.alphas_cumprod[int(t[0])])
        signal, noise = ab**0.5, (1 - ab) ** 0.5
        x0 = MEAN + signal * STD**2 / (ab * STD**2 + 1 - ab) * (x - signal * MEAN)
        return SimpleNamespace(prediction=signal * (x - signal * x0) / noise - noise * x0)

    return denoise


def error(sampler, steps, down_to_zero=None):
    """Largest distance from the flow's exact end, MEAN + STD z; by default on the timesteps that sample.py chooses."""
    diffusion = Diffusion(learn_sigma=False)
    z = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    plan = make_plan(1, steps=steps, down_to_zero=sampler == "ddim" if down_to_zero is None else down_to_zero)
    x = sample(exact(diffusion), diffusion, plan, z, torch.zeros(64).long(), sampler=sampler)
    return float((x - MEAN - STD * z).abs().max())


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_second_order_solvers_are_nearer_than_ddim(sampler):
    """At 40 steps about six times; down to timestep 0 they would be farther."""
    assert error(sampler, 40, down_to_zero=True) > error("ddim", 40)
    assert error(sampler, 20) < 0.6 * error("ddim", 20)
    assert error(sampler, 40) < 0.25 * error("ddim", 40)
    assert error(sampler, 80) < 0.1 * error("ddim", 80)


@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_is_what_diffusers_makes_of_v_prediction(steps):
    """The scheduler as its own pipelines run it, with v, zero terminal SNR and our timesteps."""
    diffusion, plan = Diffusion(learn_sigma=False), make_plan(1, steps=steps, down_to_zero=False)
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=plan.timesteps)
    z = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    theirs, denoise = z, exact(diffusion)
    for t in scheduler.timesteps:
        theirs = scheduler.step(denoise(theirs, t[None], None).prediction, t, theirs).prev_sample
    ours = sample(denoise, diffusion, plan, z, torch.zeros(8).long(), sampler="dpm++")
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_each_run_begins_afresh(sampler):
    diffusion, plan = Diffusion(learn_sigma=False), make_plan(1, steps=5)
    z = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    first, second = (
        sample(exact(diffusion), diffusion, plan, z, torch.zeros(4).long(), sampler=sampler) for _ in range(2)
    )
    assert torch.equal(first, second)
