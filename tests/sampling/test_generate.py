"""Images by index, from a real model: the same in any batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fpdm.config import SamplingConfig
from fpdm.data.codec import PixelCodec
from fpdm.diffusion import Diffusion
from fpdm.loading import make_source
from fpdm.models import build_model
from fpdm.sampling.generate import check_config, draw_images, forward_passes, plan_for


def source(name="FPDM-XS/2", class_dropout=0.1, num_classes=4):
    torch.manual_seed(0)
    model = build_model(name, input_size=8, in_channels=3, num_classes=num_classes, class_dropout=class_dropout).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return make_source(model, Diffusion(), PixelCodec())


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddpm"}, {"eta": 0.7, "cfg_scale": 2.0}], ids=str)
@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_an_image_is_the_same_in_any_batch(name, settings):
    model = source(name)
    config = SamplingConfig(steps=3, seed=3, **settings)
    plan = plan_for(model, config)
    whole = draw_images(model, config, plan, range(6))
    assert whole.dtype == torch.uint8 and whole.shape == (6, 3, 8, 8)
    part = draw_images(model, config, plan, [4, 1])
    assert (part.int() - whole[[4, 1]].int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[1])


def test_reuse_is_the_default_and_changes_images():
    model, config = source(), SamplingConfig(steps=4, iterations=1)
    plan = plan_for(model, config)
    plain, on, off = (draw_images(model, replace(config, reuse=r), plan, range(2)) for r in (None, True, False))
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
        ({"class_dropout": 0.0}, {"cfg_scale": 2.0}, "trained without label dropout"),
        ({}, {"classes": [4]}, r"classes=\[4\]: labels of this model are 0\.\.3"),
        ({}, {"cfg_channels": 5}, "cfg_channels=5: the latent has 3"),
        ({"name": "DiT-XS/2"}, {"counts": [2, 1], "steps": None}, r"counts=\[2, 1\]: an explicit model"),
    ],
)
def test_what_a_model_cannot_do_is_refused(model, settings, says):
    with pytest.raises(ValueError, match=says):
        made, config = source(**model), SamplingConfig(**{"steps": 2, **settings})
        check_config(made, config)
        plan_for(made, config)


def test_any_list_of_counts():
    model = source()
    plan = plan_for(model, SamplingConfig(counts=[5, 1, 2]))
    assert [tuple(step) for step in plan.steps] == [(999, 500, 5), (500, 0, 1), (0, -1, 2)]
    assert plan.block_passes == 3 * 2 + 8
    assert draw_images(model, SamplingConfig(counts=[5, 1, 2]), plan, [0]).shape == (1, 3, 8, 8)


def test_guidance_in_an_interval_doubles_these_timesteps_alone():
    """Outside of it the images take the path of an unguided run; the solutions of both halves go on from one."""
    model, settings = source(), {"steps": 5, "iterations": 2, "cfg_scale": 3.0}
    everywhere, inside = SamplingConfig(**settings), SamplingConfig(**settings, cfg_interval=[200, 600])
    plan = plan_for(model, inside)
    assert plan.timesteps == [999, 749, 500, 250, 0]
    assert forward_passes(inside, plan) == [1, 1, 2, 2, 1] and forward_passes(everywhere, plan) == [2] * 5
    seen, original = [], model.denoise

    def watched(x, t, y, **kwargs):
        init = kwargs["init"]
        seen.append((len(x), None if init is None else len(init)))
        return original(x, t, y, **kwargs)

    images = draw_images(model._replace(denoise=watched), inside, plan, range(3))
    assert seen == [(3, None), (3, 3), (6, 6), (6, 6), (3, 3)]
    nowhere = draw_images(model, SamplingConfig(**settings, cfg_interval=[1, 2]), plan, range(3))
    assert torch.equal(nowhere, draw_images(model, SamplingConfig(steps=5, iterations=2), plan, range(3)))
    assert not torch.equal(images, nowhere)


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 2.0}, {"cfg_scale": 2.0, "cfg_interval": [200, 600]}], ids=str)
def test_adaptive_allocation_stays_within_the_budget(settings):
    model = source()
    config = SamplingConfig(budget=60, iterations=4, allocation="adaptive", tolerance=1e-9, ratio=2, **settings)
    plan, seen = plan_for(model, config), []
    draw_images(model, config, plan, range(3), lambda i, output, x0: seen.append(output.counts[: len(x0)]))
    counts = torch.stack(seen)  # a tolerance out of reach: all is spent, as early as the ratio allows
    assert counts.sum(0).tolist() == [sum(plan.iterations)] * 3
    assert counts.min() == 1 and counts.max() == 8 and counts[0].tolist() == [8] * 3
    seen.clear()
    easy = replace(config, tolerance=1e9)
    draw_images(model, easy, plan, range(3), lambda i, output, x0: seen.append(output.counts[: len(x0)]))
    assert torch.stack(seen).sum(0).tolist() == [len(plan.steps)] * 3


def test_adaptive_images_do_not_depend_on_the_batch():
    model, config = source(), SamplingConfig(budget=60, allocation="adaptive", tolerance=0.02)
    plan = plan_for(model, config)
    whole = draw_images(model, config, plan, range(5))
    assert (draw_images(model, config, plan, [3, 0]).int() - whole[[3, 0]].int()).abs().max() <= 1
