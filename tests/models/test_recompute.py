"""Gradient checkpointing and compiled layers: the same numbers, in less memory or time."""

import pytest
import torch

from fpdm.models import build_model, compile_layers
from fpdm.training.step_memory import AllocationCounter

ITERATIONS = {"FPDM-XS/2": {"iterations": 3, "iterations_no_grad": 2}, "DiT-XS/2": {}}


def small(name, **overrides):
    torch.manual_seed(0)
    sizes = {"input_size": 8, "hidden_size": 32, "num_heads": 2, "num_classes": 3}
    model = build_model(name, **sizes, **overrides).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def step(model, name, half=False, batch=6, **kwargs):
    """Prediction and gradients of one step."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(batch, 4, 8, 8, generator=generator), torch.arange(batch) % 3
    t = torch.arange(batch) * 150 % 1000
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        prediction = model(x, t, y, drop_labels=y == 1, **ITERATIONS[name], **kwargs).prediction
    prediction.square().mean().backward()
    return prediction.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ITERATIONS)
def test_recomputing_changes_nothing(name, half):
    model = small(name)
    (plain, gradients), (again, recomputed) = step(model, name, half), step(model, name, half, recompute=True)
    assert torch.equal(plain, again)
    for key, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[key]), key


@pytest.mark.parametrize("name", ITERATIONS)
def test_recomputing_saves_memory(name):
    """Measured as it runs: every allocation counted, the gradients among them."""
    model = small(name, pre_depth=4) if name.startswith("FPDM") else small(name)
    peaks = []
    for recompute in (False, True):
        with AllocationCounter(model.parameters()) as counter:
            step(model, name, batch=120, recompute=recompute)
        peaks.append(counter.peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_compiled_layers_agree_with_eager_ones_whatever_the_iterations():
    torch.compiler.reset()
    name = "FPDM-XS/2"
    model, compiled = small(name), small(name)
    prediction, gradients = step(model, name)
    compile_layers(compiled)
    assert list(compiled.state_dict()) == list(model.state_dict())
    ours, theirs = step(compiled, name)
    torch.testing.assert_close(ours, prediction, atol=1e-4, rtol=1e-4)
    for key, gradient in gradients.items():
        torch.testing.assert_close(theirs[key], gradient, atol=1e-4, rtol=1e-3, msg=key)
    _, recomputed = step(compiled, name, recompute=True)
    for key, gradient in gradients.items():
        torch.testing.assert_close(recomputed[key], gradient, atol=1e-4, rtol=1e-3, msg=key)
    x, index = torch.randn(6, 4, 8, 8), torch.zeros(6, dtype=torch.long)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n, m in ((1, 1), (7, 2), (0, 30)):
            compiled(x, index, index, drop_labels=index.bool(), iterations=m, iterations_no_grad=n)


def test_attention_goes_through_the_kernel_that_pytorch_chooses(monkeypatch):
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    step(small("FPDM-XS/2"), "FPDM-XS/2")
    assert len(calls) == 2 + 5  # pre and post block, five updates
