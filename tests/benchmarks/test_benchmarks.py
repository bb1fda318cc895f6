"""What scripts/benchmark.py measures by: the published form, operations and bytes, order, simulation."""

import pytest
import torch
from torch import nn

from fpdm.benchmarks import steps
from fpdm.benchmarks.counted_memory import LARGEST, MEAN, iterations_of
from fpdm.benchmarks.naive import naive_form
from fpdm.benchmarks.profiles import OTHER, kind_of
from fpdm.benchmarks.published_form import average_steps
from fpdm.benchmarks.ranks import slowdown
from fpdm.benchmarks.timing import Bench, Times, alternate
from fpdm.benchmarks.updates import count_work
from fpdm.benchmarks.workloads import blocks_alone, network, sampling_run, training_step
from fpdm.models import FixedPointDiT, block_cost, build_model
from fpdm.sampling.plan import make_plan
from fpdm.training.step_memory import step_memory

BENCH = Bench(torch.device("cpu"), "no", repeats=3)
LATENT = (3, 8, 8)


def small() -> FixedPointDiT:
    return network(BENCH, "FPDM-XS/2", LATENT, hidden_size=32, num_heads=2, num_classes=4)


def test_published_form_is_the_same_function_with_the_same_gradients():
    ours, naive = small(), naive_form(small())
    x, t, y = torch.randn(3, *LATENT), torch.tensor([5, 500, 999]), torch.tensor([0, 1, 2])
    keep = torch.zeros(3, dtype=torch.bool)
    for n, m in ((0, 1), (3, 2)):
        outputs = []
        for model in (ours, naive):
            model.zero_grad()
            outputs.append(model(x, t, y, iterations=m, iterations_no_grad=n, drop_labels=keep).prediction)
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs)
        mixing = ours.implicit.injection
        expected = torch.cat([mixing.mix_h.weight.grad, mixing.mix_u.weight.grad], dim=1)
        torch.testing.assert_close(naive.implicit.injection.mix.weight.grad, expected)
        gradients = dict(ours.named_parameters())
        shared = {name: p for name, p in naive.named_parameters() if name in gradients}
        assert len(shared) > 30
        for name, parameter in shared.items():
            torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)


def test_published_form_pays_for_updates_without_gradient():
    """In memory: at least twice what ours needs at n = 12, m = 1, while ours does not grow with n."""

    def peak(model, n):
        return step_memory(model, 64, False, False, iterations=1, iterations_no_grad=n).peak

    ours, naive = build_model("FPDM-XS/2"), naive_form(build_model("FPDM-XS/2"))
    assert peak(ours, 12) == peak(ours, 1)
    assert peak(naive, 12) > 2 * peak(ours, 12)


def test_operations_and_bytes_of_a_linear_layer():
    layer, x = nn.Linear(20, 30, bias=False), torch.randn(2, 5, 20)
    work = count_work(lambda: torch.tanh(layer(x)))
    assert work.flops == 2 * 10 * 20 * 30
    assert work.product_bytes == 4 * (10 * 20 + 20 * 30 + 10 * 30)
    assert work.other_bytes == 4 * 2 * 10 * 30  # tanh reads and writes the result; views are free


def test_alternatives_are_measured_in_turn():
    order = []
    works = {name: lambda name=name: order.append(name) or torch.randn(400, 400).matrix_exp() for name in "ab"}
    times = alternate(BENCH, works)
    assert order[:4] == ["a", "b", "a", "b"]  # each twice to warm up
    rounds = [name for i, name in enumerate(order[4:]) if i == 0 or order[4:][i - 1] != name]
    assert rounds == ["a", "b", "a", "b"]  # a b, b a, a b
    assert all(t.least <= t.median <= t.most and t.first > 0 for t in times.values())


def test_a_machine_that_becomes_slower_does_not_change_a_ratio():
    """Each round at a fifth of the speed of the one before; the work is half as much more, give or take a tenth."""
    base = Times(9, 0, 0, 0, (1, 5, 25, 125, 625))
    more = Times(9, 0, 0, 0, tuple(b * f for b, f in zip(base.rounds, (1.4, 1.5, 1.6, 1.5, 1.5), strict=True)))
    assert more.against(base) == pytest.approx([1.5, 1.5, 1.5])
    assert Times(9, 0, 0, 0, (1.4, 7.5, 39)).against(Times(9, 0, 0, 0, (1, 5, 25))) == pytest.approx([1.45, 1.5, 1.53])
    assert Times(9, 0, 0, 0, (3,)).against(Times(9, 0, 0, 0, (2,))) == [1.5] * 3  # with one round, no spread


def test_work_that_is_compiled_again_is_refused():
    sizes = iter(range(2, 100))
    layer = torch.compile(lambda x: x * x.shape[0], dynamic=False)
    with pytest.raises(RuntimeError, match="recompile"):
        alternate(BENCH, {"grows": lambda: layer(torch.ones(next(sizes)))})


def test_slowdown_of_independent_draws():
    assert slowdown(12, 1, 1.0, 0.1, 0.3) == 1
    assert slowdown(12, 64, 1.0, 0.0, 0.0) == 1
    # Two processes that draw m of 1 or 2, a unit each: the larger is 2 in three of four cases; alone, 1.5 on average.
    assert slowdown(2, 2, 1.0, 0.0, 1.0) == pytest.approx(1.75 / 1.5, rel=0.01)
    factors = [slowdown(12, count, 1.0, 0.1, 0.3) for count in (1, 2, 8, 64)]
    assert factors == sorted(factors) and factors[-1] < (1 + 12 * 0.1 + 11 * 0.3) / (1 + 6 * 0.1 + 5.5 * 0.3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm_backward", "normalisation"),
        ("aten::gelu", "GELU, SiLU"),
        ("aten::_fused_adamw_", "optimizer, average, clipping"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "matrix products"),
        ("triton_poi_fused_addmm_gelu_3", "fused by the compiler"),
        ("void cuComputeGradGammaBeta<float>", "normalisation"),
        ("aten::mul", "other elementwise"),
        ("autograd::engine", OTHER),
    ],
)
def test_kinds_of_operations(name, kind):
    assert kind_of(name) == kind


def test_steps_with_gradient_and_without():
    assert iterations_of(12, MEAN) == (6, 7) and iterations_of(12, LARGEST) == (12, 12)
    assert average_steps(12, 12) == [(6, 6), (6, 7)] and average_steps(2, 3) == [(1, 2)]
    assert average_steps(3, 3) == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_pieces_of_work(name):
    """A training step changes the weights; a sampling run ends in numbers, with as many block passes as the plan's."""
    model = network(BENCH, name, LATENT, num_classes=4)
    before = [p.detach().clone() for p in model.parameters()]
    training_step(BENCH, model, LATENT, 2, [(1, 2)] if name.startswith("FPDM") else [])()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    implicit = name.startswith("FPDM")
    plan = make_plan(block_cost(model), steps=3, iterations=4 if implicit else None)
    assert sampling_run(BENCH, model, LATENT, 2, plan)().isfinite().all()
    calls = []
    layers = [model.implicit, *model.pre_blocks, *model.post_blocks] if implicit else model.blocks
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    assert blocks_alone(BENCH, model, 2, plan)().shape == (2, 16, 128)
    assert len(calls) == plan.block_passes == 3 * (6 if implicit else 12)
    for handle in handles:
        handle.remove()


def test_allocated_memory_is_held_against_the_count_on_a_gpu_alone():
    row = {"family": "DiT", "size": "XS", "patch": 2, "mode": "eager", "batch": 2, "latent": [4, 8, 8], "length": 1,
           "images_per_s": 2.0, "first_s": 0.5, "tflops": 1.0, "peak_tflops": 2.0, "counted_gib": 2.0,
           "measured_gib": 2.1, "reserved_gib": 2.5}  # fmt: skip
    head, _, line = steps.table([row]).splitlines()[-3:]
    assert head.endswith("| peak / counted |") and line.endswith("| 2.50 | 0.5 | 1.05 |")
    assert "peak / counted" not in steps.table([row | {"reserved_gib": None}])
