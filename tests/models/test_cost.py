"""FLOPs counted by torch against the arithmetic of the matrix products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fpdm.models import build_model, forward_cost, meta_twin


def block_flops(tokens: int, width: int) -> int:
    """qkv, proj and the MLP (12 D^2 per token), attention (2 N D per token), modulation (6 D^2); 2 per multiply-add."""
    return 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width + 6 * width**2)


@pytest.fixture(scope="module")
def xl():
    with torch.device("meta"):
        return forward_cost(build_model("DiT-XL/2")), forward_cost(build_model("FPDM-XL/2"))


def test_dit(xl):
    tokens, width = 256, 1152
    outside = 2 * (tokens * width * 16 + 256 * width + width**2 + 2 * width**2 + tokens * width * 32)
    assert xl[0].explicit_flops == 28 * block_flops(tokens, width) + outside
    assert (xl[0].blocks(None), xl[0].update_flops) == (28, 0)


def test_update_costs_what_its_arithmetic_costs(xl):
    """W_1h and W_2 (4 D^2 per token) on top of a block without its modulation: 1.32 blocks at XL/2."""
    tokens, width = 256, 1152
    update = 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width + tokens * 4 * width**2)
    assert xl[1].update_flops == update
    assert update / block_flops(tokens, width) == pytest.approx(1.32, abs=0.005)


def test_cost_of_a_forward(xl):
    cost = xl[1]
    assert cost.blocks(8) == 10
    assert cost.flops(8) == cost.explicit_flops + 8 * cost.update_flops
    assert 2 * block_flops(256, 1152) < cost.explicit_flops < 4 * block_flops(256, 1152)


def test_measuring_leaves_the_model_alone():
    model = build_model("FPDM-XS/2", input_size=8).train()
    forward_cost(model)
    assert model.training
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "n", "m"), [("DiT-XS/2", 0, 0), ("FPDM-XS/2", 3, 2), ("FPDM-XS/2", 0, 5)])
def test_training_step_costs_what_torch_counts(name, n, m):
    """Forward and backward counted as they run; the first layers' inputs need no gradient, hence the little less."""
    with torch.device("meta"):
        model = build_model(name, input_size=16).train()
    x, index = torch.empty(4, 4, 16, 16, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    iterations = {"iterations": m, "iterations_no_grad": n} if m else {}
    with FlopCounterMode(display=False) as counter:
        model(x, index, index, drop_labels=index.bool(), **iterations).prediction.sum().backward()
    assert counter.get_total_flops() == pytest.approx(4 * forward_cost(model).training_flops(n, m), rel=0.02)


def test_twin_has_the_structure_and_none_of_the_numbers():
    model = build_model("FPDM-XS/2", input_size=8)
    twin = meta_twin(model)
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]
    assert all(t.device.type == "meta" for t in [*twin.parameters(), *twin.buffers()])
    assert all(t.device.type == "cpu" for t in [*model.parameters(), *model.buffers()])
