"""Images by index, from a real model: the same in any batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fpdm.config import SamplingConfig
from fpdm.data.codec import PixelCodec
from fpdm.diffusion import Diffusion
from fpdm.models import build_model
from fpdm.pipeline import make_source
from fpdm.sampling.generate import check_config, draw_images, plan_for


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
    ],
)
def test_what_a_model_cannot_do_is_refused(model, settings, says):
    with pytest.raises(ValueError, match=says):
        made, config = source(**model), SamplingConfig(steps=2, **settings)
        check_config(made, config)
        plan_for(made, config)
