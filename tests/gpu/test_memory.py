"""What a training step takes of the GPU's memory, and gradients under autocast."""

import pytest
import torch

from fpdm.training.step_memory import step_memory

pytestmark = pytest.mark.gpu
STD = 0.05  # of the weights


def inputs(device, batch=16):
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(batch, 3, 16, 16, generator=generator, device=device)
    return x, torch.arange(batch, device=device) * 60, torch.arange(batch, device=device) % 4


def peak(model, **kwargs) -> int:
    """Peak bytes allocated by one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    model(*inputs("cuda"), **kwargs).prediction.sum().backward()
    return torch.cuda.max_memory_allocated()


def test_memory_does_not_depend_on_updates_without_gradient(network, empty_memory):
    model = network(std=STD, hidden_size=256, num_heads=4).train()
    peak(model, iterations=2, iterations_no_grad=1)
    few, many = (peak(model, iterations=2, iterations_no_grad=n) for n in (1, 30))
    assert many <= few * 1.02
    assert peak(model, iterations=6, iterations_no_grad=1) > few * 1.2


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_expected_memory_is_what_a_step_takes(network, empty_memory, half, recompute):
    """Weights, gradients and activations, within the rounding and the workspaces that are not counted."""
    peak(network(std=STD).train(), iterations=1)  # makes the workspaces of the libraries, which stay
    before = torch.cuda.memory_allocated()
    model = network(std=STD, hidden_size=384, num_heads=6).train()
    x = torch.randn(64, 3, 16, 16, device="cuda")
    index = torch.zeros(64, dtype=torch.long, device="cuda")
    kwargs = {"iterations": 6, "iterations_no_grad": 3}
    for _ in range(2):  # the first one makes what stays: workspaces, gradients
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.float16, enabled=half):
            output = model(x, index, index, drop_labels=index.bool(), recompute=recompute, **kwargs)
        output.prediction.square().mean().backward()
    expected = step_memory(model, 64, half, recompute, **kwargs)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured == pytest.approx(expected.peak - expected.optimizer - expected.ema, rel=0.25)


def test_recomputation_saves_memory(network, empty_memory):
    model = network(std=STD, hidden_size=256, num_heads=4).train()
    plain, recomputed = (peak(model, iterations=8, recompute=recompute) for recompute in (False, True))
    assert recomputed < 0.6 * plain


def gradients(model, inputs, precision="no", **kwargs) -> dict[str, torch.Tensor]:
    """Of every parameter, by name; no label is dropped."""
    x, t, y = inputs
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model.zero_grad()
    with torch.autocast(x.device.type, dtype, enabled=precision != "no"):
        prediction = model(x, t, y, drop_labels=torch.zeros_like(y, dtype=torch.bool), **kwargs).prediction
    prediction.float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_recomputation_changes_no_gradient(network, device):
    model = network(std=STD, hidden_size=256, num_heads=4).train()
    plain, recomputed = (gradients(model, inputs(device), iterations=8, recompute=on) for on in (False, True))
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_gradients_are_the_cpus(network, device):
    kwargs = {"iterations": 3, "iterations_no_grad": 2}
    given = inputs("cpu")
    ours = gradients(network(std=STD).train(), [part.to(device) for part in given], **kwargs)
    for name, expected in gradients(network(on="cpu", std=STD).train(), given, **kwargs).items():
        scale = expected.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(ours[name].cpu() / scale, expected / scale, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
def test_gradients_under_autocast(network, device, precision):
    """Updates without gradient leave the others' gradient whole: those of one long run, cut by detach, agree."""
    model = network(std=STD).train()
    x, t, y = inputs(device)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    none = torch.zeros_like(y, dtype=torch.bool)
    with torch.no_grad(), torch.autocast(device.type, dtype):
        start = model(x, t, y, iterations=3, drop_labels=none).solution
    whole = gradients(model, (x, t, y), precision, iterations=2, iterations_no_grad=3)
    for name, gradient in gradients(model, (x, t, y), precision, iterations=2, init=start).items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(whole[name], gradient, atol=1e-3, rtol=2e-2, msg=name)
