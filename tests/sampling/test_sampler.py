"""The sampler on a Gaussian whose exact denoiser is known, and what it hands to the model."""

from types import SimpleNamespace

import pytest
import torch

from fpdm.diffusion import Diffusion
from fpdm.evaluation.analytic import MEAN, STD, ExactDenoiser
from fpdm.sampling.plan import make_plan
from fpdm.sampling.sampler import sample
from fpdm.sampling.starts import Starts


def draw(diffusion, plan, count=4096, **settings):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 2, 2, generator=generator)
    fresh = torch.Generator().manual_seed(1)
    step_noise = lambda i: torch.randn(noise.shape, generator=fresh)  # noqa: E731
    y = torch.zeros(count, dtype=torch.long)
    return noise, sample(ExactDenoiser(diffusion), diffusion, plan, noise, y, step_noise=step_noise, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "ddim", "eta": 1.0}, {"sampler": "ddpm"}],
    ids=["ddim", "eta0.5", "eta1", "ddpm"],
)
@pytest.mark.parametrize("parametrisation", ["v", "x0", "eps"])
def test_gaussian_is_recovered(settings, parametrisation):
    diffusion = Diffusion(
        parametrisation=parametrisation, zero_terminal_snr=parametrisation != "eps", learn_sigma=False
    )
    _, x = draw(diffusion, make_plan(1, steps=400), **settings)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)


def test_ddim_follows_the_exact_flow():
    """Deterministic DDIM carries the noise z to MEAN + STD z, the flow's exact end, sample by sample."""
    noise, x = draw(Diffusion(learn_sigma=False), make_plan(1, steps=1000), count=64)
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
def test_any_number_of_steps_is_finite(steps, settings):
    plan = make_plan(1, steps=steps, two_calls=settings["sampler"] == "heun")
    _, x = draw(Diffusion(learn_sigma=False), plan, count=2, **settings)
    assert x.isfinite().all()


class Recorder:
    """An implicit model that notes what it is called with and returns its call's number as solution."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, y, **kwargs):
        self.calls.append(SimpleNamespace(x=x, t=t.clone(), y=y.clone(), **kwargs))
        solution = torch.full((len(x), 3, 5), float(len(self.calls)))
        return SimpleNamespace(prediction=torch.zeros(len(x), 2 * x.shape[1], *x.shape[2:]), solution=solution)


def run(plan, **settings):
    model, x, y = Recorder(), torch.ones(2, 4, 4, 4), torch.tensor([3, 5])
    result = sample(model, Diffusion(), plan, x, y, step_noise=lambda i: torch.zeros_like(x), **settings)
    return model.calls, result


def test_plan_is_followed_and_solutions_are_reused():
    plan = make_plan(2, budget=40, iterations=4, allocation="decreasing")
    calls, _ = run(plan, starts=Starts())
    assert [int(call.t[0]) for call in calls] == plan.timesteps
    assert [call.iterations for call in calls] == plan.iterations
    assert calls[0].init is None
    assert [float(call.init[0, 0, 0]) for call in calls[1:]] == list(range(1, len(calls)))


def test_without_reuse_every_solve_starts_afresh():
    calls, _ = run(make_plan(2, budget=40, iterations=4))
    assert all(call.init is None for call in calls)


def test_explicit_models_get_no_iterations():
    calls, _ = run(make_plan(12, steps=3))
    assert not hasattr(calls[0], "iterations") and not hasattr(calls[0], "init")


def test_guidance_doubles_the_batch_and_keeps_solutions_apart():
    calls, result = run(make_plan(2, steps=3, iterations=2), cfg_scale=2.0, null_label=10, starts=Starts())
    assert calls[0].y.tolist() == [3, 5, 10, 10]
    assert calls[1].init.shape == (4, 3, 5)
    assert result.shape == (2, 4, 4, 4)


def test_predicted_images_are_clipped_on_request():
    seen = []
    run(make_plan(1, steps=2), clip_x0=0.25, on_step=lambda i, output, x0: seen.append(x0))
    assert max(float(x0.abs().max()) for x0 in seen) <= 0.25


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cfg_scale": 2.0}, "no trained null label"),
        ({"sampler": "euler"}, "sampler='euler'"),
        ({"starts": Starts()}, "no solution to reuse"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        run(make_plan(12, steps=3), **settings)
    with pytest.raises(ValueError, match="needs step_noise"):
        sample(
            Recorder(), Diffusion(), make_plan(1, steps=2), torch.ones(1, 4, 4, 4), torch.tensor([0]), sampler="ddpm"
        )
