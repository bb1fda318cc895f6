"""The sampler on a Gaussian whose exact denoiser is known, and what it hands to the model."""

from types import SimpleNamespace

import pytest
import torch

from fpdm.cost import ForwardCost
from fpdm.evaluation.analytic import MEAN, STD, exact_source
from fpdm.processes import Diffusion
from fpdm.processes.times import Spacing
from fpdm.sampling.call import Source
from fpdm.sampling.guidance import Guidance
from fpdm.sampling.plan import make_plan
from fpdm.sampling.solving import Solving


@pytest.fixture
def exact(run_sampler):
    def run(diffusion, plan, count=4096, **settings):
        noise = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        fresh = torch.Generator().manual_seed(1)
        step_noise = lambda i: torch.randn(noise.shape, generator=fresh)  # noqa: E731
        y = torch.zeros(count, dtype=torch.long)
        return noise, run_sampler(exact_source(diffusion), plan, noise, y, step_noise=step_noise, **settings)

    return run


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "ddim", "eta": 1.0}, {"sampler": "ddpm"}],
    ids=["ddim", "eta0.5", "eta1", "ddpm"],
)
@pytest.mark.parametrize("parametrisation", ["v", "x0", "eps"])
def test_gaussian_is_recovered(exact, settings, parametrisation):
    diffusion = Diffusion(
        parametrisation=parametrisation, zero_terminal_snr=parametrisation != "eps", learn_sigma=False
    )
    _, x = exact(diffusion, make_plan(ForwardCost(1), steps=400), **settings)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)


def test_ddim_follows_the_exact_flow(exact):
    """Deterministic DDIM carries the noise z to MEAN + STD z, the flow's exact end, sample by sample."""
    noise, x = exact(Diffusion(learn_sigma=False), make_plan(ForwardCost(1), steps=1000), count=64)
    torch.testing.assert_close(x, MEAN + STD * noise, atol=0.01, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10, 33, 50, 93, 250, 500, 999, 1000])
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim"},
        {"sampler": "ddim", "eta": 1.0},
        {"sampler": "ddpm"},
        {"sampler": "ab2"},
        {"sampler": "heun"},
        {"sampler": "dpm++"},
        {"sampler": "unipc"},
    ],
    ids=["ddim", "eta1", "ddpm", "ab2", "heun", "dpm++", "unipc"],
)
def test_any_number_of_steps_is_finite(exact, steps, settings):
    plan = make_plan(ForwardCost(1), steps=steps, spacing=Spacing(two_calls=settings["sampler"] == "heun"))
    _, x = exact(Diffusion(learn_sigma=False), plan, count=2, **settings)
    assert x.isfinite().all()


class Recorder:
    """An implicit model that notes what it is called with and returns its call's number as solution."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, y, **kwargs):
        self.calls.append(SimpleNamespace(x=x, t=t.clone(), y=y.clone(), **kwargs))
        solution = torch.full((len(x), 3, 5), float(len(self.calls)))
        return SimpleNamespace(prediction=torch.zeros(len(x), 2 * x.shape[1], *x.shape[2:]), solution=solution)


@pytest.fixture
def run(run_sampler):
    def run(plan, clip=None, **settings):
        model, x, y = Recorder(), torch.ones(2, 4, 4, 4), torch.tensor([3, 5])
        codec = None if clip is None else SimpleNamespace(clip=clip)
        source = Source(model, Diffusion(), plan.cost, (4, 4, 4), num_classes=10, guidable=True, codec=codec)
        result = run_sampler(source, plan, x, y, step_noise=lambda i: torch.zeros_like(x), **settings)
        return model.calls, result

    return run


def test_plan_is_followed_and_solutions_are_reused(run):
    plan = make_plan(ForwardCost(2, 1), budget=40, iterations=4, allocation="decreasing")
    calls, _ = run(plan)
    assert [int(call.t[0]) for call in calls] == plan.timesteps
    assert [call.iterations for call in calls] == plan.iterations
    assert calls[0].init is None
    assert [float(call.init[0, 0, 0]) for call in calls[1:]] == list(range(1, len(calls)))


def test_without_reuse_every_solve_starts_afresh(run):
    calls, _ = run(make_plan(ForwardCost(2, 1), budget=40, iterations=4), solving=Solving(reuse=False))
    assert all(call.init is None for call in calls)


def test_explicit_models_get_no_iterations(run):
    calls, _ = run(make_plan(ForwardCost(12), steps=3))
    assert not hasattr(calls[0], "iterations") and not hasattr(calls[0], "init")


def test_guidance_doubles_the_batch_and_keeps_solutions_apart(run):
    calls, result = run(make_plan(ForwardCost(2, 1), steps=3, iterations=2), guidance=Guidance(2.0))
    assert calls[0].y.tolist() == [3, 5, 10, 10]
    assert calls[1].init.shape == (4, 3, 5)
    assert result.shape == (2, 4, 4, 4)


def test_predicted_images_are_clipped_where_their_range_is_known(run):
    seen = []
    run(make_plan(ForwardCost(1), steps=2), clip=0.25, on_step=lambda i, call: seen.append(call.x0))
    assert max(float(x0.abs().max()) for x0 in seen) <= 0.25


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampler": "rk4"}, "sampler='rk4'"),
        ({"sampler": "heun"}, "needs a plan with two calls per step"),
        ({"solving": Solving(reuse=True)}, "reuse=true: an explicit model"),
        ({"solving": Solving(anderson=9)}, "anderson=9: a memory of 1 to 5"),
        ({"guidance": Guidance(2.0, channels=5)}, "cfg_channels=5: the latent has 4"),
        ({"guidance": Guidance(-1.0)}, r"cfg_scale=-1\.0: at least 0"),
    ],
)
def test_impossible_settings_are_refused(run, settings, says):
    with pytest.raises(ValueError, match=says):
        run(make_plan(ForwardCost(12), steps=3), **settings)


def test_no_guidance_without_a_null_label(run_sampler):
    diffusion = Diffusion(learn_sigma=False)
    source, plan = exact_source(diffusion), make_plan(ForwardCost(1), steps=2)
    with pytest.raises(ValueError, match=r"cfg_scale=2\.0: .*no null label"):
        run_sampler(source, plan, torch.ones(1, 1, 2, 2), torch.tensor([0]), guidance=Guidance(2.0))
    with pytest.raises(ValueError, match="needs step_noise"):
        run_sampler(source, plan, torch.ones(1, 1, 2, 2), torch.tensor([0]), sampler="ddpm")
