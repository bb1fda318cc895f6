"""Expected memory against what can be counted by hand, and against other ways of counting."""

import pytest
import torch
from torch import nn

from fpdm.models import build_model
from fpdm.training.step_memory import AllocationCounter, step_memory


def test_counter_knows_a_case_with_a_known_answer():
    with AllocationCounter() as counter:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000 alive
        view = b.view(10, 100)  # no new memory
        del b, view
        c = a * 2  # 8,000 alive again
        del a, c
    assert (counter.peak, counter.live) == (8000, 0)


def test_linear_layers_by_hand():
    """Three linear maps of width 64 on 32 rows: each keeps its input; the backward pass adds gradients."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    x = torch.zeros(32, 64)
    with AllocationCounter(model.parameters()) as counter:
        y = model(x)
        assert counter.live == 3 * 32 * 64 * 4
        y.sum().backward()
    assert counter.live >= 3 * 64 * 64 * 4  # the weights' gradients stay


def test_gradients_that_stay_add_to_the_peak():
    """As in DDP's buckets, or under accumulation; counted over a real second backward pass."""
    model = build_model("DiT-XS/2", input_size=16, num_classes=10).train()
    x, index = torch.randn(8, 4, 16, 16), torch.zeros(8, dtype=torch.long)
    for _ in range(2):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        with AllocationCounter([*model.parameters(), *model.buffers(), *gradients, x, index]) as counter:
            model(x, index, index, drop_labels=index.bool()).prediction.square().mean().backward()
    kept = sum(gradient.numel() * 4 for gradient in gradients)
    memory = step_memory(model, 8, False, False, gradients_stay=True)
    assert memory.peak - memory.weights - memory.ema - memory.optimizer == pytest.approx(counter.peak + kept, rel=0.03)
    assert memory.peak > step_memory(model, 8, False, False).peak


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("name", "kwargs"), [("DiT-XS/2", {}), ("FPDM-XS/2", {"iterations": 4, "iterations_no_grad": 3})]
)
def test_fake_step_needs_what_a_real_one_does(name, kwargs, recompute):
    """The same counting over a real step on the CPU, with real numbers in it."""
    model = build_model(name, input_size=16, num_classes=10).train()
    x, index = torch.randn(8, 4, 16, 16), torch.zeros(8, dtype=torch.long)
    with AllocationCounter([*model.parameters(), *model.buffers(), x, index]) as counter:
        output = model(x, index, index, drop_labels=index.bool(), recompute=recompute, **kwargs)
        activations = counter.live
        output.prediction.square().mean().backward()
    memory = step_memory(model, 8, False, recompute, **kwargs)
    assert memory.activations == pytest.approx(activations, rel=0.03)
    assert memory.peak - memory.weights - memory.ema - memory.optimizer == pytest.approx(counter.peak, rel=0.03)
    assert (
        memory.weights
        == memory.gradients
        == memory.ema
        == memory.optimizer / 2
        == sum(p.numel() * 4 for p in model.parameters())
    )


def test_activations_are_what_autograd_saves():
    """Before the backward pass begins, the graph holds all that the saved tensors' hooks see."""
    model = build_model("FPDM-XS/2", input_size=16, num_classes=10).train()
    x, index = torch.randn(8, 4, 16, 16), torch.zeros(8, dtype=torch.long)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x, index, index, drop_labels=index.bool(), iterations=4)
    assert step_memory(model, 8, False, False, iterations=4).activations == pytest.approx(sum(saved.values()), rel=0.1)
    del output


@pytest.mark.parametrize("settings", [{}, {"implicit_depth": 3, "injection": "add"}, {"implicit_depth": 2}])
def test_memory_does_not_depend_on_updates_without_gradient(settings):
    model = build_model("FPDM-XS/2", input_size=16, num_classes=10, **settings)
    few, many = (step_memory(model, 8, True, False, iterations=2, iterations_no_grad=n).peak for n in (1, 25))
    assert few == many
    assert step_memory(model, 8, True, False, iterations=8).peak > 1.3 * few


def test_paper_pair_at_batch_64():
    """DiT-XL/2 against FPDM-XL/2 with M = 12, 16 bits: under half of the memory (paper: 25.2 and 10.2 GB)."""
    with torch.device("meta"):
        dit, fpdm = build_model("DiT-XL/2"), build_model("FPDM-XL/2")
    ours = step_memory(fpdm, 64, True, False, iterations=12)
    assert ours.peak < 0.5 * step_memory(dit, 64, True, False).peak
    assert ours.weights == 4 * 86_500_256
