"""What is compiled, how often, and what is said where that ends; the compiler's own work is left out (aot_eager)."""

import logging
from functools import partialmethod

import pytest
import torch
from torch import nn

from fpdm.models import build_model, compile_layers
from fpdm.models import compiled as module


@pytest.fixture(autouse=True)
def no_code_is_generated(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    with torch._dynamo.config.patch(optimize_ddp=True):  # what is set within is taken back
        before = getattr(torch._dynamo.config, module.LIMIT)
        yield
        setattr(torch._dynamo.config, module.LIMIT, before)
    torch.compiler.reset()


def network(name="FPDM-XS/2", **settings) -> nn.Module:
    torch.manual_seed(0)
    made = build_model(name, num_classes=4, input_size=8, hidden_size=32, num_heads=2, **settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


def step(model: nn.Module, batch: int, dtype: torch.dtype | None, **forward) -> torch.Tensor:
    """A forward and backward pass of a training step; the gradient of all weights."""
    generator = torch.Generator().manual_seed(batch)
    x, index = torch.randn(batch, 4, 8, 8, generator=generator), torch.arange(batch) % 4
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output = model(x, index * 200, index, drop_labels=index == 1, **forward)
    sum(part.square().mean() for part in (output.prediction, *output.early)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_layers_are_compiled_whole(dtype):
    """What breaks a graph in some version of torch (as asking whether there is autocast did) runs uncompiled."""
    model = network().train()
    compile_layers(model)
    torch._dynamo.utils.counters.clear()
    step(model, 6, dtype, iterations=2, iterations_no_grad=1)
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        model.eval()(*inputs(), iterations=2)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_odd_batches_and_other_iterations_compile_nothing(dtype, recompute):
    eager, compiled = network().train(), network().train()
    compile_layers(compiled)
    for n, m in ((0, 1), (2, 2)):
        step(compiled, 6, dtype, iterations=m, iterations_no_grad=n, recompute=recompute)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, n, m in ((5, 2, 2), (3, 1, 4), (2, 0, 3)):
            forward = {"iterations": m, "iterations_no_grad": n, "recompute": recompute}
            ours, theirs = (step(model, batch, dtype, **forward) for model in (compiled, eager))
            torch.testing.assert_close(ours, theirs, atol=1e-6 if dtype is None else 2e-3, rtol=1e-4)


@pytest.mark.parametrize("early_head", [0, 2])
@pytest.mark.parametrize(("injection", "loops"), [("lanes", 3), ("decay", 0)])
def test_loops_of_several_blocks_compile_once(injection, loops, early_head):
    """Whatever the number of updates and their indices, the lanes' weights and the loops' own modulations; with an exit
    inside the first update, too."""
    settings = {"injection": injection, "loop_embedding": loops, "implicit_depth": 2, "early_head": early_head}
    exits = {"exits": (early_head,)} if early_head else {}
    eager, compiled = network(**settings).train(), network(**settings).train()
    compile_layers(compiled)
    n = 0 if injection == "lanes" else 2  # lanes have no gradient before the loop after updates without gradient
    for count, m in ((0, 1), (n, 2)):
        step(compiled, 6, None, iterations=m, iterations_no_grad=count, **exits)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, count, m in ((5, n, 2), (3, n, 6), (2, 0, 3)):
            forward = {"iterations": m, "iterations_no_grad": count} | exits
            ours, theirs = (step(model, batch, None, **forward) for model in (compiled, eager))
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_an_exit_inside_an_update_before_calls_without_it_compiles_nothing_new():
    """As with an interval of internal guidance. The first update is then not one of those that were compiled first."""
    settings = {"injection": "add", "loop_embedding": 3, "implicit_depth": 2, "early_head": 2}
    eager, compiled = network(**settings).eval(), network(**settings).eval()
    compile_layers(compiled)
    with torch.no_grad():
        compiled(*inputs(), iterations=3, exits=(2,))
        with torch.compiler.set_stance("fail_on_recompile"):
            found = compiled(*inputs(), iterations=5).prediction
        torch.testing.assert_close(found, eager(*inputs(), iterations=5).prediction, atol=1e-6, rtol=1e-4)


def test_blocks_with_all_options_are_compiled_whole():
    """Rotary tables are inputs of a graph: the three pre blocks share one, and there are as many as without options."""
    options = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "positions": "rotary", "exclude_own_value": True}
    eager, compiled = (network(pre_depth=3, **options).train() for _ in range(2))
    compile_layers(compiled)
    torch._dynamo.utils.counters.clear()
    forward = {"iterations": 2, "iterations_no_grad": 1}
    ours, theirs = (step(model, 6, torch.bfloat16, **forward) for model in (compiled, eager))
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
    # Of the explicit blocks; of an update without gradient, of the first with it, and of the later ones.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    with torch.compiler.set_stance("fail_on_recompile"):
        step(compiled, 5, torch.bfloat16, iterations=3, iterations_no_grad=2)


def test_adaptive_iteration_of_fewer_and_fewer_samples_compiles_nothing_new():
    """Once samples have left a batch, down to one: their constants are then rows of others, with other strides."""
    model = network().eval()
    compile_layers(model)
    generator = torch.Generator().manual_seed(0)
    x, index = torch.randn(8, 4, 8, 8, generator=generator), torch.arange(8)
    with torch.no_grad():
        model(x[:3], index[:3] * 100, index[:3] % 4, iterations=torch.tensor([5, 4, 3]), tolerance=1e-9)
        with torch.compiler.set_stance("fail_on_recompile"):
            most = torch.tensor([9, 8, 7, 6, 5, 4, 3, 3])
            output = model(x, index * 100, index % 4, iterations=most, tolerance=1e-9)
    assert output.counts.tolist() == most.tolist()


def test_a_copy_of_a_compiled_model_is_its_own():
    """Of training's network the preview and the export take copies."""
    from copy import deepcopy

    model = network()
    compile_layers(model)
    copy = deepcopy(model)
    with torch.no_grad():
        before = copy(*inputs(), iterations=1).prediction
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(copy(*inputs(), iterations=1).prediction, before)
        assert model(*inputs(), iterations=1).prediction.abs().max() == 0


def inputs():
    return torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])


def test_all_forms_of_training_and_sampling_fit(caplog):
    """Both precisions, with and without gradient, one sample and several: nothing runs uncompiled."""
    model = network()
    compile_layers(model)
    assert getattr(torch._dynamo.config, module.LIMIT) >= module.MOST_FORMS
    with caplog.at_level(logging.WARNING, "fpdm"):
        for dtype in (None, torch.bfloat16, torch.float16):
            for batch in (6, 1):
                step(model.train(), batch, dtype, iterations=2, iterations_no_grad=2)
                with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                    x, t, y = inputs()
                    model.eval()(x[:batch], t[:batch], y[:batch], iterations=3)
    assert not caplog.records


def test_layer_that_runs_uncompiled_is_told_of(caplog, monkeypatch):
    monkeypatch.setattr(module, "MOST_FORMS", 1)
    setattr(torch._dynamo.config, module.LIMIT, 1)
    model = network()
    compile_layers(model)
    with caplog.at_level(logging.WARNING, "fpdm"):
        step(model.train(), 3, None, iterations=2, iterations_no_grad=1)
    assert any("runs uncompiled from here on" in record.getMessage() for record in caplog.records)
