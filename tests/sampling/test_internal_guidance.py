"""Internal guidance: D_i + w (D_last - D_i), of both families, alone and with every other technique."""

from dataclasses import asdict

import pytest
import torch

import fpdm
from fpdm.config import DiffusionConfig
from fpdm.data.codec import PixelCodec
from fpdm.injections import INJECTIONS
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


TECHNIQUES = (
    {"allocation": "adaptive", "tolerance": 1e-3},
    {"allocation": "adaptive", "tolerance": 1e-3, "anderson": 2},
    {"allocation": "decreasing", "sampler": "dpm++"},
    {"allocation": "increasing", "sampler": "unipc"},
    {"anderson": 3, "sampler": "heun"},
    {"reuse_weight": 0.8, "sampler": "ab2"},
    {"extrapolation": 0.5, "sampler": "ddpm", "cfg_scale": 2.0},
    {"reuse": False, "internal_interval": [100, 800], "sampler": "euler"},
    {"sampler": "sde", "cfg_scale": 1.5, "cfg_interval": [100, 800]},
)


def in_two_solves(source, updates):
    """The same source, whose exit after so many updates is the prediction of a solve of its own that ends there."""

    def denoise(x, t, y, *, exits=(), iterations, **kwargs):
        output = source.denoise(x, t, y, iterations=iterations, **kwargs)
        if not exits:
            return output
        shorter = torch.as_tensor(iterations).clamp(max=updates)
        shorter = shorter if isinstance(iterations, torch.Tensor) else int(shorter)
        return output._replace(early=(source.denoise(x, t, y, iterations=shorter, **kwargs).prediction,))

    return source._replace(denoise=denoise)


@pytest.mark.parametrize("settings", TECHNIQUES, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("injection", INJECTIONS)
def test_it_goes_with_every_other_technique_in_every_form(injection, settings):
    needs_reuse = {"reuse_weight", "extrapolation"} & settings.keys()
    reuse = injection != "none" and settings.get("reuse", True)
    if needs_reuse and not reuse:
        pytest.skip("without an injection, there is no reuse")
    source = source_of(network(injection=injection, implicit_depth=2))
    given = {"steps": 4, "iterations": 4, **settings, "reuse": reuse}
    exit_ = {"internal_guidance": 3.0, "internal_exit": int(source.cost.last_exit(2))}
    images, expected = (fpdm.sample(one, 2, **given, **exit_).int() for one in (source, in_two_solves(source, 2)))
    plain = fpdm.sample(source, 2, **{k: v for k, v in given.items() if k != "internal_interval"}).int()
    assert (images - expected).abs().max() <= 1  # of 255: rounding
    assert (images - plain).abs().max() > 3


@pytest.mark.parametrize("early_head", [1, 2, 3])
@pytest.mark.parametrize("settings", TECHNIQUES[::2], ids=lambda settings: "-".join(map(str, settings.values())))
def test_an_early_head_guides_with_every_other_technique(settings, early_head):
    """Before the first update, inside it, and after it. The exit is at the same tokens whatever is done later."""
    model = network(injection="lanes", implicit_depth=2, early_head=early_head, reuse=True)
    source, seen = source_of(model), []

    def denoise(x, t, y, *, exits=(), **kwargs):
        output = source.denoise(x, t, y, exits=exits, **kwargs)
        if exits:
            start = {name: value for name, value in kwargs.items() if name == "init"}
            alone = source.denoise(x, t, y, exits=exits, iterations=1, **start).early[0]
            torch.testing.assert_close(output.early[0], alone)
            seen.append(exits)
        return output

    given = {"steps": 4, "iterations": 4, **settings}
    images = fpdm.sample(source._replace(denoise=denoise), 2, **given, internal_guidance=2.0)
    plain = fpdm.sample(source, 2, **{k: v for k, v in given.items() if k != "internal_interval"})
    assert set(seen) == {(early_head,)} and not torch.equal(images, plain)


def test_a_dit_is_guided_by_its_early_head():
    source = source_of(network(DiT, depth=4, early_head=2))
    seen = []

    def denoise(x, t, y, exits=()):
        output = source.denoise(x, t, y, exits=(2, 4))
        seen.append(exits)
        # By hand: the first exit is decoded by its own head, the second one as the prediction.
        torch.testing.assert_close(output.early[1], output.prediction)
        return output._replace(early=output.early[:1])

    images, expected = (fpdm.sample(one, 2, steps=4, internal_guidance=1.5)
                        for one in (source, source._replace(denoise=denoise)))  # fmt: skip
    assert torch.equal(images, expected) and set(seen) == {(2,)}


def test_the_interval_saves_no_block_passes():
    """A plan is made for a budget before its timesteps are known, so a shared exit is counted at all of them."""
    source = source_of(network(post_depth=2))
    settings = {"steps": 10, "iterations": 2, "internal_guidance": 2.0}
    everywhere, near = (plan_for(source, SamplingConfig(**settings, **more))
                        for more in ({}, {"internal_interval": [0, 200]}))  # fmt: skip
    assert everywhere.block_passes == near.block_passes == 10 * (1 + 2 + 2 + 2)


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
            "exit 3: the last exit of a guided call is 3, so this one guides",
        ),
        (FixedPointDiT, {"internal_exit": 1}, "internal_exit=1: without a head of its own .*; give 2, after the first"),
        (FixedPointDiT, {"iterations": 1}, "give more iterations"),
        (FixedPointDiT, {"counts": [1, 1, 1, 4], "internal_interval": [600, 999]}, "last exit of a guided call is 2"),
        (FixedPointDiT, {"iterations": 2, "allocation": "adaptive", "internal_exit": 7}, "last exit .* call is 7"),
        (DiT, {}, r"internal_guidance=3\.0: this model has no early head"),
        (DiT, {"internal_exit": 4}, "exit 4: the last exit of a guided call is 4, .*; give a smaller exit"),
    ],
)
def test_an_exit_that_guides_nothing_is_refused(kind, settings, said):
    source = source_of(network(kind, **({"depth": 4} if kind is DiT else {})))
    with pytest.raises(ValueError, match=said):
        fpdm.sample(source, 2, **({} if "counts" in settings else {"steps": 4}), internal_guidance=3.0, **settings)


def test_an_exit_beyond_the_mean_guides_adaptive_calls():
    """Which may have three times as many updates."""
    settings = {"steps": 4, "iterations": 2, "allocation": "adaptive", "tolerance": 1e-6}
    source = source_of(network())
    guided = fpdm.sample(source, 2, **settings, internal_guidance=3.0, internal_exit=3)
    assert not torch.equal(guided, fpdm.sample(source, 2, **settings))


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
