"""Heun and the multistep solvers on a Gaussian whose exact flow is known; against diffusers' use of its own."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from fpdm.cost import ForwardCost
from fpdm.evaluation.analytic import exact_source, solver_error
from fpdm.processes import Diffusion
from fpdm.processes.times import Spacing
from fpdm.sampling.plan import make_plan
from fpdm.sampling.solvers import SOLVERS


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_second_order_solvers_are_nearer_than_ddim(sampler):
    """At 40 steps about six times; down to timestep 0 they would be farther."""
    assert solver_error(sampler, 40, down_to_zero=True) > solver_error("ddim", 40)
    assert solver_error(sampler, 20) < 0.6 * solver_error("ddim", 20)
    assert solver_error(sampler, 40) < 0.25 * solver_error("ddim", 40)
    assert solver_error(sampler, 80) < 0.1 * solver_error("ddim", 80)


@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_is_what_diffusers_makes_of_v_prediction(run_sampler, steps):
    """The scheduler as its own pipelines run it, with v, zero terminal SNR and our timesteps."""
    diffusion = Diffusion(learn_sigma=False)
    plan = make_plan(ForwardCost(1), steps=steps, spacing=Spacing(down_to_zero=False))
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=plan.timesteps)
    z = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    theirs, source = z, exact_source(diffusion)
    for t in scheduler.timesteps:
        theirs = scheduler.step(source.denoise(theirs, t[None], None).prediction, t, theirs).prev_sample
    ours = run_sampler(source, plan, z, torch.zeros(8).long(), sampler="dpm++")
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", ["ab2", "heun"])
def test_error_falls_with_the_square_of_the_step(sampler):
    """From pure noise on: twice the steps, a quarter of the error; DDIM's only halves."""
    errors = [solver_error(sampler, steps) for steps in (10, 20, 40, 80)]
    ratios = [late / early for early, late in pairwise(errors)]
    assert all(0.15 < ratio < 0.3 for ratio in ratios), ratios
    assert solver_error("ddim", 80) / solver_error("ddim", 40) > 0.45


def test_few_steps_are_best_spent_over_the_angle():
    """At ten model calls the two solvers over the angle are nearer to the exact flow than the ones in log-SNR."""
    ab2, dpm, unipc, ddim = (solver_error(sampler, 10) for sampler in ("ab2", "dpm++", "unipc", "ddim"))
    assert ab2 < 0.7 * min(dpm, unipc) and dpm < ddim
    assert solver_error("heun", 5) < 0.9 * ddim  # nine calls


def test_a_constant_prediction_is_followed_exactly(run_sampler):
    """If all the data were one image, every solver would end there, in one step or many."""
    diffusion, image = Diffusion(learn_sigma=False), torch.full((1, 1, 2, 2), 0.3)

    def denoise(x, t, y, **_):
        ab = float(diffusion.alphas_cumprod[int(t[0])])
        signal, noise = ab**0.5, (1 - ab) ** 0.5
        return SimpleNamespace(prediction=signal * (x - signal * image) / noise - noise * image)

    source = exact_source(diffusion)._replace(denoise=denoise)
    for name, solver in SOLVERS.items():
        if solver.random:
            continue
        plan = make_plan(source.cost, steps=4, spacing=solver.spacing)
        x = run_sampler(source, plan, torch.randn(1, 1, 2, 2), torch.zeros(1).long(), sampler=name)
        torch.testing.assert_close(x, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ab2", "heun", "dpm++", "unipc"])
def test_each_run_begins_afresh(run_sampler, sampler):
    source = exact_source(Diffusion(learn_sigma=False))
    plan = make_plan(source.cost, steps=5, spacing=SOLVERS[sampler].spacing)
    z = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    first, second = (run_sampler(source, plan, z, torch.zeros(4).long(), sampler=sampler) for _ in range(2))
    assert torch.equal(first, second)
