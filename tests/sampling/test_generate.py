"""Images by index, from a real model: the same in any batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fpdm.cost import ForwardCost
from fpdm.data.codec import PixelCodec
from fpdm.loading import make_source
from fpdm.models import build_model, compile_layers
from fpdm.processes import Diffusion, Flow
from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for, sample, sample_images, total_flops
from fpdm.sampling.plan import make_plan
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solving import Solving


def source(name="FPDM-XS/2", class_dropout=0.1, num_classes=4, process=None):
    torch.manual_seed(0)
    process = process or Diffusion()
    sizes = {"input_size": 8, "in_channels": 3, "num_classes": num_classes, "learn_sigma": process.learn_sigma}
    model = build_model(name, class_dropout=class_dropout, **sizes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return make_source(model, process, PixelCodec())


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddpm"}, {"eta": 0.7, "cfg_scale": 2.0}], ids=str)
@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_an_image_is_the_same_in_any_batch(name, settings):
    model = source(name)
    config = SamplingConfig(steps=3, seed=3, **settings)
    plan = plan_for(model, config)
    whole = sample_images(model, config, plan, range(6))
    assert whole.dtype == torch.uint8 and whole.shape == (6, 3, 8, 8)
    part = sample_images(model, config, plan, [4, 1])
    assert (part.int() - whole[[4, 1]].int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[1])


SOLVING = [
    {"reuse_weight": 0.8},
    {"extrapolation": 1.0},
    {"anderson": 2},
    {"extrapolation": 0.5, "reuse_weight": 0.9, "anderson": 3, "cfg_scale": 2.0, "cfg_interval": [200, 800]},
    {"sampler": "heun"},
    {"sampler": "ab2", "anderson": 1},
    {"sampler": "unipc", "extrapolation": 1.0},
    {"allocation": "adaptive", "anderson": 1, "extrapolation": 0.5, "sampler": "heun", "cfg_scale": 1.5},
]


@pytest.mark.parametrize("settings", SOLVING, ids=str)
def test_ways_to_solve_change_the_path_and_not_what_an_image_depends_on(settings):
    model, config = source(), SamplingConfig(steps=5, iterations=3, **settings)
    plan = plan_for(model, config)
    whole = sample_images(model, config, plan, range(5))
    assert (sample_images(model, config, plan, [3, 0]).int() - whole[[3, 0]].int()).abs().max() <= 1
    plain = SamplingConfig(steps=5, iterations=3)
    assert not torch.equal(whole, sample_images(model, plain, plan_for(model, plain), range(5)))


UNGUIDED = [{"sampler": name} for name in ("ddpm", "ddim", "dpm++", "unipc")]


@pytest.mark.parametrize("settings", [*UNGUIDED, {"eta": 0.5}, *SOLVING[:-1]], ids=str)
def test_host_does_not_wait_for_the_device_between_timesteps(settings, host_reads):
    """Adaptive allocation alone does: it must know which samples are done."""
    model = source()
    with host_reads() as counter, torch.inference_mode():
        config = SamplingConfig(steps=6, iterations=3, **settings)
        sample_images(model, config, plan_for(model, config), range(3))
    assert counter.count == 0


def test_every_way_to_solve_ends_at_the_fixed_point():
    """With iterations enough for the solution, it does not matter where a solve starts or how it gets there."""
    model = source()
    ends = []
    for settings in ({"reuse": False}, {}, {"reuse_weight": 0.5}, {"extrapolation": 1.0}, {"anderson": 3}):
        config = SamplingConfig(steps=4, iterations=60, **settings)
        ends.append(sample_images(model, config, plan_for(model, config), range(4)).int())
    for end in ends[1:]:
        assert (end - ends[0]).abs().max() <= 1


def test_heun_with_reuse_starts_every_call_from_the_one_before():
    model, seen = source(), []
    config = SamplingConfig(budget=54, iterations=4, sampler="heun")
    plan, original = plan_for(model, config), model.denoise

    def watched(x, t, y, **kwargs):
        seen.append((int(t[0]), kwargs["init"] is not None))
        return original(x, t, y, **kwargs)

    sample_images(model._replace(denoise=watched), config, plan, range(2))
    assert seen == [(999, False), (749, True), (749, True), (500, True), (500, True), (250, True), (250, True),
                    (0, True), (0, True)]  # fmt: skip
    assert plan.block_passes == 54


def test_samples_are_the_same_at_any_batch_size():
    model = source()
    settings = {"budget": 30, "iterations": 4, "classes": [2, 0]}
    one, many = (sample(model, 5, batch_size=size, **settings) for size in (2, 64))
    assert one.shape == (5, 3, 8, 8) and one.dtype == torch.uint8 and (one.int() - many.int()).abs().max() <= 1
    assert sample(model, 1, protocol="paper-ddim-140").shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="count=0: at least 1"):
        sample(model, 0, budget=30)


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_sampling_is_eager_sampling_whatever_the_iterations(run_sampler, graphs):
    """Anderson, starts and the count are outside of what is compiled: after the first run nothing is compiled again."""
    torch.compiler.reset()
    network = build_model("FPDM-XS/2", input_size=8, in_channels=3, num_classes=4).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    compiled = build_model("FPDM-XS/2", input_size=8, in_channels=3, num_classes=4).eval()
    compiled.load_state_dict(network.state_dict())
    compile_layers(compiled, graphs)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, ways = torch.tensor([0, 1, 2]), [Solving(False), Solving(True, 1.0, 0.5), Solving(True, 0.8, 0.0, 2)]

    def latents(model, iterations, solving):
        plan = make_plan(ForwardCost(2, 1), steps=2, iterations=iterations)
        with torch.inference_mode():
            return run_sampler(Source(model, Diffusion(), plan.cost, (3, 8, 8)), plan, noise, labels, solving=solving)

    if graphs:
        with pytest.raises(ValueError, match="graphs=True: only for sampling"):
            compiled(noise, torch.tensor([1, 2, 3]), labels, iterations=2)
    for settings in ways:
        latents(compiled, 2, settings)
    with torch.compiler.set_stance("fail_on_recompile"):
        for iterations in range(1, 31):
            settings = ways[iterations % 3]
            ours, expected = latents(compiled, iterations, settings), latents(network, iterations, settings)
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_reuse_is_the_default_and_changes_images():
    model, config = source(), SamplingConfig(steps=4, iterations=1)
    plan = plan_for(model, config)
    plain, on, off = (sample_images(model, replace(config, reuse=r), plan, range(2)) for r in (None, True, False))
    assert torch.equal(plain, on)
    assert not torch.equal(on, off)


def test_budget_becomes_a_plan_for_this_model():
    assert len(plan_for(source(), SamplingConfig(budget=60, iterations=3)).steps) == 12
    assert len(plan_for(source(), SamplingConfig(budget=60)).steps) == 10  # 4 iterations
    assert len(plan_for(source("DiT-XS/2"), SamplingConfig(budget=60)).steps) == 5


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        ({"name": "DiT-XS/2"}, {"iterations": 3}, "iterations=3: an explicit model"),
        ({"name": "DiT-XS/2"}, {"reuse": True}, "reuse=true: an explicit model"),
        ({"name": "DiT-XS/2"}, {"anderson": 2}, "anderson=2: an explicit model"),
        ({"name": "DiT-XS/2"}, {"extrapolation": 0.5}, "extrapolation=0.5: an explicit model"),
        ({"class_dropout": 0.0}, {"cfg_scale": 2.0}, "trained without label dropout"),
        ({}, {"classes": [4]}, r"classes=\[4\]: labels of this model are 0\.\.3"),
        ({}, {"cfg_channels": 5, "cfg_scale": 2.0}, "cfg_channels=5: the latent has 3"),
        ({"name": "DiT-XS/2"}, {"counts": [2, 1], "steps": None}, r"counts=\[2, 1\]: an explicit model"),
    ],
)
def test_what_a_model_cannot_do_is_refused(model, settings, says):
    with pytest.raises(ValueError, match=says):
        made, config = source(**model), SamplingConfig(**{"steps": 2, **settings})
        plan_for(made, config)


@pytest.mark.parametrize("name", ["cfg", "internal"])
@pytest.mark.parametrize(
    ("process", "interval", "says"),
    [
        (Flow(), [0, 700], r"\[0, 700\]: this model's timesteps are 0 to 1; .* as in 0\.1,0\.7"),
        (Flow(), [0.2, 1.01], r"\[0\.2, 1\.01\]: this model's timesteps are 0 to 1;"),
        (Diffusion(), [100, 1000], r"\[100, 1000\]: this model's timesteps are 0 to 999; .* as in 100,700"),
        (Diffusion(timesteps=50), [10, 700], r"\[10, 700\]: this model's timesteps are 0 to 49; .* as in 5,35"),
    ],
)
def test_an_interval_beyond_the_timesteps_is_refused(process, interval, says, name):
    scale = {"cfg": "cfg_scale", "internal": "internal_guidance"}[name]
    made = source(process=process)
    config = SamplingConfig(**{"steps": 5, scale: 2.0, f"{name}_interval": interval})
    with pytest.raises(ValueError, match=f"{name}_interval={says}"):
        plan_for(made, config)
    inside = SamplingConfig(**{"steps": 5, scale: 2.0, f"{name}_interval": [0, process.times().largest]})
    assert len(plan_for(made, inside).steps) == 5


def test_an_interval_of_a_flow_guides_these_times_alone():
    made, doubled = source(process=Flow()), []
    denoise = lambda x, *rest, **options: (doubled.append(len(x) == 4), made.denoise(x, *rest, **options))[1]  # noqa: E731
    sample(made._replace(denoise=denoise), 2, steps=5, cfg_scale=2.0, cfg_interval=[0.3, 0.7])
    assert doubled == [False, False, True, True, False]  # 1, 0.8, 0.6, 0.4, 0.2


@pytest.mark.parametrize("length", [{"steps": 3}, {"counts": [2, 2, 2]}])
def test_an_interval_without_a_timestep_is_refused(length):
    with pytest.raises(ValueError, match=r"cfg_interval=\[1, 2\]: none of the timesteps"):
        plan_for(source(), SamplingConfig(cfg_scale=2.0, cfg_interval=[1, 2], **length))


def test_any_list_of_counts():
    model = source()
    plan = plan_for(model, SamplingConfig(counts=[5, 1, 2]))
    assert [tuple(step) for step in plan.steps] == [(999, 500, 5), (500, 0, 1), (0, -1, 2)]
    assert plan.block_passes == 3 * 2 + 8
    assert sample_images(model, SamplingConfig(counts=[5, 1, 2]), plan, [0]).shape == (1, 3, 8, 8)


def test_guidance_in_an_interval_doubles_these_timesteps_alone():
    """Outside of it the images take the path of an unguided run; the solutions of both halves go on from one."""
    model, settings = source(), {"steps": 5, "iterations": 2, "cfg_scale": 3.0}
    everywhere, inside = SamplingConfig(**settings), SamplingConfig(**settings, cfg_interval=[200, 600])
    plan = plan_for(model, inside)
    assert plan.timesteps == [999, 749, 500, 250, 0]
    once = ForwardCost(2, 1, 10, 100)
    assert [inside.guidance.at(t) for t in plan.timesteps] == [False, False, True, True, False]
    assert total_flops(inside, plan._replace(cost=once)) == 7 * 210
    assert total_flops(everywhere, plan._replace(cost=once)) == 10 * 210
    seen, original = [], model.denoise

    def watched(x, t, y, **kwargs):
        init = kwargs["init"]
        seen.append((len(x), None if init is None else len(init)))
        return original(x, t, y, **kwargs)

    images = sample_images(model._replace(denoise=watched), inside, plan, range(3))
    assert seen == [(3, None), (3, 3), (6, 6), (6, 6), (3, 3)]
    nowhere = sample_images(model, SamplingConfig(**settings, cfg_interval=[1, 2]), plan, range(3))
    assert torch.equal(nowhere, sample_images(model, SamplingConfig(steps=5, iterations=2), plan, range(3)))
    assert not torch.equal(images, nowhere)


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 2.0}, {"cfg_scale": 2.0, "cfg_interval": [200, 600]}], ids=str)
def test_adaptive_allocation_stays_within_the_budget(settings):
    model = source()
    config = SamplingConfig(budget=60, iterations=4, allocation="adaptive", tolerance=1e-9, ratio=2, **settings)
    plan, seen = plan_for(model, config), []
    sample_images(model, config, plan, range(3), lambda i, call: seen.append(call.updates[: len(call.x0)]))
    counts = torch.stack(seen)  # a tolerance out of reach: all is spent, as early as the ratio allows
    assert counts.sum(0).tolist() == [sum(plan.iterations)] * 3
    assert counts.min() == 1 and counts.max() == 8 and counts[0].tolist() == [8] * 3
    seen.clear()
    easy = replace(config, tolerance=1e9)
    sample_images(model, easy, plan, range(3), lambda i, call: seen.append(call.updates[: len(call.x0)]))
    assert torch.stack(seen).sum(0).tolist() == [len(plan.steps)] * 3


def test_adaptive_images_do_not_depend_on_the_batch():
    model, config = source(), SamplingConfig(budget=60, allocation="adaptive", tolerance=0.02)
    plan = plan_for(model, config)
    whole = sample_images(model, config, plan, range(5))
    assert (sample_images(model, config, plan, [3, 0]).int() - whole[[3, 0]].int()).abs().max() <= 1
