"""Latents whose height and width differ: positions, patches, cost and saved config of both families."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fpdm.models import build_model, forward_cost, load_pretrained
from fpdm.models.blocks import sincos_positions
from fpdm.training.step_memory import step_memory

FAMILIES = ("DiT-XS/2", "FPDM-XS/2")
POSITIONS = ("sincos", "learned", "rotary", "none")
SMALL = {"in_channels": 3, "hidden_size": 32, "num_heads": 2, "num_classes": 2}


def make(name, input_size=(4, 6), **settings):
    torch.manual_seed(0)
    depth = {"depth": 2} if name.startswith("DiT") else {}
    model = build_model(name, **{**SMALL, **depth, "input_size": input_size, **settings}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def call(model, x):
    index = torch.zeros(len(x), dtype=torch.long)
    return model(x, index, index, **({"iterations": 2} if model.iterative else {})).prediction


def test_positions_are_those_of_row_and_column():
    """The formula, token by token in NumPy."""
    width, rows, columns = 16, 3, 5
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    expected = [
        np.concatenate([np.sin(c * omega), np.cos(c * omega), np.sin(r * omega), np.cos(r * omega)])
        for r in range(rows)
        for c in range(columns)
    ]
    found = sincos_positions(width, rows, columns)
    assert found.shape == (1, 15, width)
    np.testing.assert_allclose(found[0].numpy(), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize(("size", "patch"), [((4, 6), 2), ((8, 4), 4), ((2, 8), 2)])
def test_patches_become_the_picture_that_fold_makes(monkeypatch, size, patch):
    model = make(f"DiT-XS/{patch}", size)
    tokens, c = torch.zeros(2, *model.token_shape), torch.zeros(2, 32)
    patches = torch.randn(2, model.token_shape[0], patch * patch * model.out_channels)
    monkeypatch.setattr(model.final_layer, "forward", lambda tokens, c: patches)
    columns = patches.unflatten(-1, (patch * patch, -1)).permute(0, 3, 2, 1).flatten(1, 2)  # fold's: channels first
    assert torch.equal(model.head(tokens, c), F.fold(columns, size, kernel_size=patch, stride=patch))


def test_tokens_are_those_of_unfold():
    model, x = make("FPDM-XS/2", positions="none"), torch.randn(2, 3, 4, 6)
    proj = model.x_embedder.proj
    expected = F.linear(F.unfold(x, kernel_size=2, stride=2).mT, proj.weight.flatten(1), proj.bias)
    assert (model.grid, model.token_shape) == ((2, 3), (6, 32))
    torch.testing.assert_close(model.embed(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_rectangle_is_predicted(name, positions):
    model = make(name, positions=positions).train()
    x = torch.randn(2, 3, 4, 6, requires_grad=True)
    prediction = call(model, x)
    assert prediction.shape == (2, 6, 4, 6)
    prediction.square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_square_may_be_written_as_a_pair(name):
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(call(make(name, 4), x), call(make(name, [4, 4]), x))


@pytest.mark.parametrize("name", FAMILIES)
def test_cost_and_memory_follow_the_number_of_tokens(name):
    square, long = make(name, 8), make(name, (4, 16))
    assert forward_cost(square) == forward_cost(long)
    sizes = {"iterations": 2} if square.iterative else {}
    assert step_memory(square, 2, False, False, **sizes) == step_memory(long, 2, False, False, **sizes)
    assert forward_cost(make(name, (4, 18))).explicit_flops > forward_cost(long).explicit_flops


@pytest.mark.parametrize("name", FAMILIES)
def test_config_and_card_say_height_and_width(name, tmp_path):
    for size, kept, card in ((8, 8, "3 x 8 x 8"), ((4, 6), [4, 6], "3 x 4 x 6")):
        model = make(name, size)
        model.save_pretrained(tmp_path / card)
        assert json.loads((tmp_path / card / "config.json").read_text())["input_size"] == kept
        assert card in (tmp_path / card / "README.md").read_text()
        x = torch.randn(1, 3, *model.latent_size)
        for opened in (load_pretrained(tmp_path / card), type(model).from_pretrained(tmp_path / card)):
            assert torch.equal(call(opened, x), call(model, x))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (15, "patch_size=2 does not divide input_size=15: choose another patch"),
        ((32, 15), "patch_size=2 does not divide input_size=32x15: .* a height and a width that are multiples of 2"),
        ((15, 32), "patch_size=2 does not divide input_size=15x32"),
        ((32,), r"input_size=\(32,\): give one number for a square, or height and width"),
        ([4, 8, 8], r"input_size=\[4, 8, 8\]: give one number"),
        ([4, 0], r"input_size=\[4, 0\]: give one number"),
        (8.0, r"input_size=8\.0: give one number"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(size, says):
    with pytest.raises(ValueError, match=says):
        build_model("DiT-XS/2", input_size=size)
