"""The linear interpolant: known answers, solvers on a Gaussian whose exact flow is known, spacing, settings."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fpdm.config import DiffusionConfig
from fpdm.cost import ForwardCost
from fpdm.evaluation.analytic import MEAN, STD, exact_source, solver_error
from fpdm.processes import Diffusion, Flow, make_process
from fpdm.processes.times import ContinuousTimes, Spacing
from fpdm.sampling.plan import describe, make_plan, plan_of_counts
from fpdm.sampling.solvers import SOLVERS

FLOW = Flow(time_scale=1.0)


def test_levels_and_predictions():
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0.2, 0.5, 1.0])
    x = FLOW.add_noise(x0, eps, t)
    for i, time in enumerate(t.tolist()):
        level, row = FLOW.level(time), slice(i, i + 1)
        torch.testing.assert_close(x[row], level.signal * x0[row] + level.noise * eps[row])
        found = FLOW.x0_and_eps(FLOW.target(x0, eps, t)[row], x[row], level)
        torch.testing.assert_close(found, (x0[row], eps[row]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(FLOW.mean_of(x0[row], x[row], level), eps[row] - x0[row], atol=1e-5, rtol=1e-5)
        snr = (level.signal / level.noise) ** 2
        assert level.alpha_bar == pytest.approx(snr / (1 + snr)) and level.scale == pytest.approx(
            math.hypot(1 - time, time)
        )
    assert FLOW.losses(FLOW.target(x0, eps, t), x0, eps, t).total.max() == 0
    losses = FLOW.losses(FLOW.target(x0, eps, t) + 0.5, x0, eps, t)
    torch.testing.assert_close(losses.total, torch.full((3,), 0.25))
    assert losses.vb.max() == 0
    with pytest.raises(ValueError, match="prediction has 4 channels, a flow of 2"):
        FLOW.losses(torch.zeros(3, 4, 4, 4), x0, eps, t)


def test_parts_of_the_time():
    t = torch.tensor([0.0, 0.24, 0.25, 0.999, 1.0])
    assert FLOW.part(t, 4).tolist() == [0, 0, 1, 3, 3]
    assert FLOW.cleaner(t, torch.full((5,), 0.1)).tolist() == pytest.approx([0, 0.14, 0.15, 0.899, 0.9])
    assert Flow().network_time(torch.tensor([0.5])).item() == 500


@pytest.mark.parametrize("sampler", ["ab2", "heun"])
def test_second_order_solvers(sampler):
    """Twice the steps, a quarter of the error."""
    errors = [solver_error(sampler, steps, process=FLOW) for steps in (10, 20, 40, 80)]
    assert all(0.2 < late / early < 0.32 for early, late in pairwise(errors)), errors


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_solvers_in_log_snr(sampler):
    """They get there more slowly, because their steps are uneven in log-SNR."""
    errors = [solver_error(sampler, steps, process=FLOW) for steps in (10, 20, 40, 80, 160)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * solver_error("euler", 160, process=FLOW)


def test_euler_is_ddim_and_its_error_halves():
    assert solver_error("euler", 40, process=FLOW) == pytest.approx(solver_error("ddim", 40, process=FLOW), rel=1e-3)
    assert 0.45 < solver_error("euler", 80, process=FLOW) / solver_error("euler", 40, process=FLOW) < 0.55


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_spaces_the_calls_as_diffusers_does_and_ends_at_the_same_place(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    assert FLOW.times(shift).spaced(8) == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-6)
    early, late = (solver_error("heun", steps, process=FLOW, shift=shift) for steps in (20, 80))
    assert late < early / 8 and late < 1e-3  # second order


@pytest.mark.parametrize("process", [FLOW, Diffusion(learn_sigma=False)], ids=["flow", "discrete"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("sde", 0.0), ("ddim", 1.0)])
def test_random_solvers_end_in_the_data(run_sampler, process, sampler, eta):
    """Mean and standard deviation of 4,096 samples of 4 values, which are those of the Gaussian."""
    source, generator = exact_source(process), torch.Generator().manual_seed(0)
    plan = make_plan(source.cost, steps=200, times=process.times(), spacing=SOLVERS[sampler].spacing)
    noise = lambda step: torch.randn(4096, 1, 2, 2, generator=generator)  # noqa: E731
    x = run_sampler(source, plan, noise(0), torch.zeros(4096).long(), sampler=sampler, eta=eta, step_noise=noise)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01) and float(x.std()) == pytest.approx(STD, rel=0.05)


def test_times():
    times = ContinuousTimes()
    assert times.spaced(4) == [1, 0.75, 0.5, 0.25] and times.spaced(1) == [1]
    assert times.spaced(3, Spacing(last=0.2)) == pytest.approx([1, 0.6, 0.2])
    assert times.visits(2, Spacing(two_calls=True)) == [1, 0.5, 0.5, 0]
    assert ContinuousTimes(3.0).spaced(4) == pytest.approx([1, 0.9, 0.75, 0.5])  # 3 t / (1 + 2 t)
    plan = make_plan(ForwardCost(2, 1), budget=42, iterations=4, times=times)
    assert plan.timesteps == pytest.approx([i / 7 for i in range(7, 0, -1)]) and plan.steps[-1].t_next == 0
    assert "7 timesteps (1..0.1429)" in describe(plan, 0)
    twice = make_plan(ForwardCost(12), budget=60, times=times, spacing=Spacing(two_calls=True))
    assert twice.timesteps == [1, 0.5, 0.5, 0] and twice.block_passes == 48
    with pytest.raises(ValueError, match="3 entries, but 1 steps of this solver have 2 model calls, 2 steps 4"):
        plan_of_counts(ForwardCost(2, 1), [1, 2, 3], times, Spacing(two_calls=True))


def test_only_continuous_time_has_a_shift():
    assert Flow().times(2.0).shift == 2.0
    with pytest.raises(ValueError, match=r"shift=2\.0: discrete timesteps have no shift"):
        Diffusion().times(2.0)


def test_settings_choose_the_process():
    """Older facts name no process; settings of the other one stay aside."""
    assert isinstance(make_process({"schedule": "linear", "learn_sigma": False}), Diffusion)
    flow = make_process(vars(DiffusionConfig(process="flow", time_scale=2.0, draw="logit-normal", draw_mean=-0.4)))
    assert isinstance(flow, Flow) and flow.time_scale == 2 and flow.timestep_draw == ("logit-normal", -0.4, 1.0)
    assert DiffusionConfig(process="flow").learn_sigma is False and DiffusionConfig().learn_sigma is True
    with pytest.raises(ValueError, match="process='rf': choose one of discrete, flow"):
        make_process({"process": "rf"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"process": "flow", "schedule": "cosine"}, r"diffusion\.schedule=cosine with diffusion\.process=flow, which"),
        ({"process": "flow", "weighting": "min-snr"}, r"diffusion\.weighting=min-snr with diffusion\.process=flow"),
        ({"time_scale": 1.0}, r"diffusion\.time_scale=1\.0 with diffusion\.process=discrete"),
        ({"process": "sde"}, r"diffusion\.process='sde': choose one of discrete, flow"),
        ({"draw": "cosine"}, r"diffusion\.draw='cosine': choose one of uniform, logit-normal, log-normal"),
        ({"draw_mean": 1.0}, r"draw_mean=1\.0, draw_deviation=1\.0 with draw=uniform, which uses neither"),
    ],
)
def test_settings_without_effect_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DiffusionConfig(**settings)
