"""Internal guidance: D_i + w (D_last - D_i), of both families, alone and with every other technique."""

from dataclasses import asdict

import pytest
import torch

import fpdm
from fpdm.config import DiffusionConfig
from fpdm.data.codec import PixelCodec
from fpdm.loading import make_source
from fpdm.models import DiT, FixedPointDiT
from fpdm.pipeline import FPDMPipeline
from fpdm.processes import Diffusion
from fpdm.sampling.call import ModelCalls
from fpdm.sampling.generate import plan_for, total_flops
from fpdm.sampling.guidance import Guidance, InternalGuidance, guide_internally
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solving import Solving
from fpdm.schedulers import default_scheduler

FACTS = {"diffusion": asdict(DiffusionConfig()), "codec": "pixels", "codec_fingerprint": "pixels"}


def network(kind=FixedPointDiT, **settings):
    torch.manual_seed(0)
    model = kind(**{"input_size": 4, "in_channels": 3, "hidden_size": 32, "num_heads": 2, "num_classes": 2} | settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def source_of(model):
    return make_source(model, Diffusion(), PixelCodec())


def test_the_formula():
    last, early = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    guided = guide_internally(last, early, 3, 1.7)
    torch.testing.assert_close(guided[:, :3], early[:, :3] + 1.7 * (last - early)[:, :3])
    assert torch.equal(guided[:, 3:], last[:, 3:])  # the variance
    torch.testing.assert_close(guide_internally(last, early, 3, 1.0), last)
    torch.testing.assert_close(guide_internally(last, early, 3, 0.0)[:, :3], early[:, :3])


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "early_head", "exit_"),
    [(FixedPointDiT, 0, 3), (FixedPointDiT, 1, 1), (FixedPointDiT, 2, 2), (FixedPointDiT, 5, 5), (DiT, 0, 3)],
)
def test_a_call_combines_the_predictions_of_two_exits(kind, early_head, exit_, cfg):
    model = network(kind, early_head=early_head, **({"depth": 4} if kind is DiT else {"implicit_depth": 2}))
    guidance = Guidance(cfg, internal=InternalGuidance(1.5, exit_ if not early_head else None))
    x, y = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    iterations = None if kind is DiT else 4
    calls = ModelCalls(source_of(model), y, guidance, Solving())
    found = calls(x, 500, Diffusion().level(500), iterations)
    forward = {} if kind is DiT else {"iterations": 4}

    @torch.no_grad()
    def guided(labels):
        output = model(x, torch.full((2,), 500), labels, exits=(exit_,), **forward)
        early, last = output.early[0][:, :3], output.prediction[:, :3]
        return early + 1.5 * (last - early)

    expected = guided(y)
    if cfg != 1:
        null = guided(torch.full((2,), 2))
        expected = null + cfg * (expected - null)
    torch.testing.assert_close(found.mean, expected, atol=1e-4, rtol=1e-4)


def test_the_budget_counts_a_shared_exit_and_not_a_head_of_its_own():
    shared, own = (source_of(network(post_depth=3, early_head=number)) for number in (0, 2))
    plain, guided = ({"budget": 120, "iterations": 4}, {"budget": 120, "iterations": 4, "internal_guidance": 1.5})
    for source, expected in ((shared, 4 + 3 + 4), (own, 4 + 4)):
        config = SamplingConfig(**guided)
        plan = plan_for(source, config)
        assert plan.block_passes == len(plan.steps) * expected <= 120
        without = plan_for(source, SamplingConfig(**plain))
        cost = source.cost
        more = cost.head_flops if source is own else cost.exit_flops
        assert more > 0
        flops = total_flops(config, plan) / len(plan.steps)
        assert flops == pytest.approx(total_flops(SamplingConfig(**plain), without) / len(without.steps) + more)
    other = SamplingConfig(**guided, internal_exit=3)  # not that of the early head
    assert plan_for(own, other).block_passes % (4 + 3 + 4) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"allocation": "adaptive"},
        {"allocation": "decreasing", "sampler": "dpm++"},
        {"anderson": 2, "sampler": "heun"},
        {"extrapolation": 0.5, "sampler": "ddpm", "cfg_scale": 2.0},
        {"reuse": False, "internal_interval": [100, 800]},
    ],
)
@pytest.mark.parametrize("injection", ["mlp", "lanes"])
@pytest.mark.parametrize("early_head", [1, 2, 3])
def test_it_goes_with_every_other_technique(settings, injection, early_head):
    """The exit is before the first update, inside it, or after it."""
    source = source_of(network(injection=injection, implicit_depth=2, early_head=early_head, reuse=True))
    images = fpdm.sample(source, 2, budget=80, internal_guidance=1.5, **settings)
    plain = fpdm.sample(source, 2, budget=80, **{k: v for k, v in settings.items() if k != "internal_interval"})
    assert images.shape == (2, 3, 4, 4) and not torch.equal(images, plain)


def test_outside_the_interval_nothing_is_guided():
    source, exits = source_of(network()), []
    denoise = lambda *args, **kwargs: (exits.append(kwargs.get("exits")), source.denoise(*args, **kwargs))[1]  # noqa: E731
    fpdm.sample(source._replace(denoise=denoise), 1, steps=5, internal_guidance=2.0, internal_interval=[200, 800])
    assert exits == [None, (2,), (2,), (2,), None]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            FixedPointDiT,
            {"iterations": 2, "internal_exit": 3},
            "exit 3: the last exit of a call is 3, so this one guides",
        ),
        (FixedPointDiT, {"internal_exit": 1}, "internal_exit=1: without a head of its own .*; give 2, after the first"),
        (FixedPointDiT, {"iterations": 1}, "give more iterations"),
        (DiT, {"internal_exit": 4}, "exit 4: the last exit of a call is 4, .*; give a smaller exit"),
    ],
)
def test_an_exit_that_guides_nothing_is_refused(kind, settings, said):
    source = source_of(network(kind, **({"depth": 4} if kind is DiT else {})))
    with pytest.raises(ValueError, match=said):
        fpdm.sample(source, 2, steps=4, internal_guidance=3.0, **settings)


def test_an_early_head_guides_also_where_it_sees_the_last_iterate():
    source = source_of(network(early_head=3))
    settings = {"steps": 4, "iterations": 2}
    assert not torch.equal(
        fpdm.sample(source, 2, **settings, internal_guidance=3.0), fpdm.sample(source, 2, **settings)
    )


def test_the_pipeline_guides_alike():
    model = network(early_head=1)
    pipe = FPDMPipeline(model, default_scheduler(Diffusion()), None, FACTS)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 4, 4)
    plain, guided = (pipe([0, 1], num_inference_steps=5, iterations=3, latents=noise, output_type="latent",
                          internal_guidance=scale) for scale in (1.0, 1.6))  # fmt: skip
    assert not torch.equal(plain.images, guided.images) and plain.block_passes == guided.block_passes
    pipe = FPDMPipeline(network(), default_scheduler(Diffusion()), None, FACTS)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        [0], num_inference_steps=5, iterations=3, output_type="latent", internal_guidance=1.6, internal_exit=2
    )
    assert output.block_passes == 5 * (2 + 3 + 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"internal_guidance": -1.0}, r"internal_guidance=-1\.0: at least 0"),
        ({"internal_exit": 2}, "internal_exit=2 with internal_guidance=1: nothing is guided"),
        ({"internal_guidance": 2.0, "internal_interval": [7, 3]}, "the lowest and the highest guided timestep"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SamplingConfig(steps=3, **settings)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="internal_exit=9: this model has 4 blocks"):
        fpdm.sample(source_of(network(DiT, depth=4)), 1, steps=3, internal_guidance=2.0, internal_exit=9)
    with pytest.raises(ValueError, match="none of the timesteps"):
        fpdm.sample(source_of(network()), 1, steps=2, internal_guidance=2.0, internal_interval=[300, 400])
