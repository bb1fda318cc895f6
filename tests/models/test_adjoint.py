"""Gradients of a solve other than through its last updates: against exact ones, finite differences and TorchDEQ."""

import math

import pytest
import torch
from torch import nn
from torchdeq import get_deq

from fpdm.models import FixedPointDiT
from fpdm.models.adjoint import ADJOINT_SOLVERS, Adjoint
from fpdm.models.gradients import Gradient, squared_jacobian

D = 16


class Tanh(nn.Module):
    """h -> tanh(h A^T + x): a contraction, for 2 samples of 3 tokens."""

    def __init__(self, size: float = 0.7):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
        self.a = nn.Parameter(size * basis)
        self.x = nn.Parameter(torch.randn(2, 3, D, generator=generator, dtype=torch.float64))
        self.weights = torch.randn(2, 3, D, generator=generator, dtype=torch.float64)

    def forward(self, h):
        return torch.tanh(h @ self.a.T + self.x)

    def solution(self):
        h = torch.zeros(2, 3, D, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(400):
                h = self(h)
        return h

    def gradients(self, loss):
        self.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in (self.a, self.x)]


@pytest.fixture
def layer():
    return Tanh()


@pytest.fixture
def exact(layer):
    """Gradients of (weights * h*).sum() by backpropagation through 400 updates."""
    h = torch.zeros(2, 3, D, dtype=torch.float64)
    for _ in range(400):
        h = layer(h)
    return layer.gradients((layer.weights * h).sum())


def test_the_settings_name_every_solver():
    from fpdm.config.sjfb import ADJOINT_SOLVERS as NAMED

    assert tuple(ADJOINT_SOLVERS) == NAMED


@pytest.mark.parametrize("solver", ADJOINT_SOLVERS)
def test_a_sample_does_not_depend_on_the_others(solver):
    """One that converges at once beside one that takes long."""
    v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    slope = torch.tensor([0.05, 0.9])[:, None, None]
    both = Adjoint(solver, 1e-2, 50).solve(lambda y: slope * y, v)
    for row in (0, 1):
        alone = Adjoint(solver, 1e-2, 50).solve(lambda y, row=row: slope[row : row + 1] * y, v[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone)


@pytest.mark.parametrize("solver", ADJOINT_SOLVERS)
def test_gradients_are_exact(layer, exact, solver):
    adjoint = Adjoint(solver, 2e-7, 200)
    h = adjoint(layer, layer.solution())
    found = layer.gradients((layer.weights * h).sum())
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    products, solves, failures = adjoint.take()
    assert 5 < products < 200 and (solves, failures) == (1, 0) and adjoint.take() == (0, 0, 0)


def test_accelerated_solvers_need_fewer_products(layer):
    counts = {}
    for solver in ADJOINT_SOLVERS:
        adjoint = Adjoint(solver, 1e-6, 200)
        layer.gradients((layer.weights * adjoint(layer, layer.solution())).sum())
        counts[solver] = adjoint.take().products
    assert counts["anderson"] < counts["fixed-point"] and counts["broyden"] < counts["fixed-point"], counts


def test_gradients_are_those_of_torchdeq(layer):
    deq = get_deq(ift=True, f_solver="fixed_point_iter", f_max_iter=300, f_tol=1e-12, b_solver="anderson",
                  b_max_iter=200, b_tol=1e-12)  # fmt: skip
    solutions, _ = deq(layer, torch.zeros(2, 3, D, dtype=torch.float64))
    theirs = layer.gradients((layer.weights * solutions[-1]).sum())
    h = Adjoint("anderson", 1e-10, 200)(layer, layer.solution())
    for ours, expected in zip(layer.gradients((layer.weights * h).sum()), theirs, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_differences(layer):
    h = Adjoint("broyden", 1e-10, 200)(layer, layer.solution())
    gradient_a, gradient_x = layer.gradients((layer.weights * h).sum())
    generator = torch.Generator().manual_seed(1)
    for parameter, gradient in ((layer.a, gradient_a), (layer.x, gradient_x)):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                values.append(float((layer.weights * layer.solution()).sum()))
                parameter.sub_(sign * 1e-5 * direction)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("solver", ADJOINT_SOLVERS)
def test_solves_that_fail_are_counted(layer, solver):
    adjoint = Adjoint(solver, 1e-12, 2)
    layer.gradients((layer.weights * adjoint(layer, layer.solution())).sum())
    assert adjoint.take() == (2, 1, 2)  # products, one solve, both samples


@pytest.mark.parametrize("solver", ADJOINT_SOLVERS)
def test_a_solve_that_is_not_finite_falls_back_to_jfb(solver):
    v = torch.ones(2, 1, 3)
    bad = torch.tensor([1.0, math.inf])[:, None, None]
    adjoint = Adjoint(solver, 1e-6, 20)
    y = adjoint.solve(lambda y: 0.5 * y * bad, v)
    torch.testing.assert_close(y[0], 2 * v[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(y[1], v[1]) and adjoint.take().failures == 1


def test_without_gradients_it_is_the_update(layer):
    adjoint, h = Adjoint("anderson", 1e-6, 20), layer.solution()
    with torch.no_grad():
        assert torch.equal(adjoint(layer, h), layer(h))
    assert adjoint.take() == (0, 0, 0)


def network(**settings) -> FixedPointDiT:
    """A network whose updates contract."""
    torch.manual_seed(0)
    sizes = {"input_size": 4, "in_channels": 3, "hidden_size": D, "num_heads": 2, "num_classes": 3}
    model = FixedPointDiT(**sizes | settings).eval()  # labels are not dropped
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    return x, torch.tensor([700, 20]), torch.tensor([0, 1])


def gradients_of(model, **forward) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*data(), **forward).prediction.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("injection", ["mlp", "decay"])
def test_gradients_of_a_network(injection, recompute):
    """Equal to those through 60 updates, for every parameter: also those before the implicit layer."""
    model = network(injection=injection, implicit_depth=2)
    residual = model(*data(), iterations=60, with_residuals=True).residuals[:, -1]
    assert residual.max() < 1e-6
    exact = gradients_of(model, iterations=60)
    adjoint = Gradient(adjoint=Adjoint("anderson", 1e-6, 100))
    ours = gradients_of(model, iterations=1, iterations_no_grad=60, gradient=adjoint, recompute=recompute)
    jfb = gradients_of(model, iterations=1, iterations_no_grad=60)
    away = lambda found: sum(float((found[name] - exact[name]).square().sum()) for name in exact) ** 0.5  # noqa: E731
    assert away(ours) < 1e-3 * away(jfb)
    with pytest.raises(ValueError, match="iterations=3 with an adjoint: exactly 1 update carries the gradient"):
        model(*data(), iterations=3, gradient=adjoint)


def test_phantom_gradients():
    """k damped updates at the fixed point give v^T tau sum_i (1 - tau + tau J)^i, i < k, which is exact at last."""
    model, tau = network(), 0.5
    exact = gradients_of(model, iterations=60)

    def away(found):
        return sum(float((found[name] - exact[name]).square().sum()) for name in exact) ** 0.5

    found = {k: gradients_of(model, iterations=k, iterations_no_grad=60, gradient=Gradient(damping=tau))
             for k in (1, 2, 8, 60)}  # fmt: skip
    assert away(found[1]) > away(found[2]) > away(found[8]) > 100 * away(found[60])
    jfb = gradients_of(model, iterations=1, iterations_no_grad=60)  # one damped update: tau times JFB inside the loop
    for name, gradient in found[1].items():
        if name.startswith("implicit."):
            torch.testing.assert_close(gradient, tau * jfb[name], atol=1e-5, rtol=1e-4)


def before_the_loop(model):
    """The pre blocks' output and the constants of the updates for `data`."""
    x, t, y = data()
    c_y, x_pre = model.y_embedder(y), model.embed(x)
    for block in model.pre_blocks:
        x_pre = block(x_pre, block.modulation(c_y))
    return x_pre, model.implicit.constants(x_pre, model.t_embedder(t) + c_y).at(0), c_y


@pytest.mark.parametrize(("steps", "tau"), [(1, 0.5), (3, 0.5), (4, 0.8)])
def test_phantom_gradients_are_those_of_torchdeq(steps, tau):
    """For every parameter, also those before the implicit layer."""
    model = network()
    ours = gradients_of(model, iterations=steps, iterations_no_grad=60, gradient=Gradient(damping=tau))
    x_pre, constants, c_y = before_the_loop(model)
    deq = get_deq(ift=False, f_solver="fixed_point_iter", f_max_iter=60, f_tol=0.0, grad=steps, tau=tau).train()
    solutions, _ = deq(lambda h: model.implicit(h, constants), x_pre.detach())
    model.zero_grad()
    model.decode(solutions[-1], c_y).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_phantom_gradients_are_finite_differences():
    """Of the damped updates from the solution, which itself stays where it is."""
    model, forward = network(pre_depth=0), {"iterations": 3, "gradient": Gradient(damping=0.5)}
    with torch.no_grad():
        solution = model(*data(), iterations=60).solution
    loss = lambda: model(*data(), init=solution, **forward).prediction.double().square().sum()  # noqa: E731
    gradients = gradients_of(model, init=solution, **forward)
    through = gradients_of(model, iterations=3, iterations_no_grad=60, gradient=Gradient(damping=0.5))
    for name, parameter in model.implicit.named_parameters():
        name = f"implicit.{name}"
        torch.testing.assert_close(gradients[name], through[name], atol=1e-4, rtol=1e-3)  # starts at the same place
        direction = gradients[name] / gradients[name].norm()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 3e-3 * direction)
                values.append(float(loss()))
                parameter.sub_(sign * 3e-3 * direction)
        assert (values[0] - values[1]) / 6e-3 == pytest.approx(float(gradients[name].norm()), rel=2e-2), name


def test_size_of_the_jacobian(layer):
    """For h -> h A^T it is |v A|^2 / n; its mean over v is |A|^2 / D; it has a gradient, here 2 A v v^T / n."""
    a = layer.a.detach().float().requires_grad_()
    h, v = torch.zeros(2, 3, D), torch.randn(2, 3, D)
    found = squared_jacobian(lambda h: h @ a.T, h, v)
    torch.testing.assert_close(found, (v @ a).square().flatten(1).mean(1))
    found.sum().backward()
    expected = 2 / (3 * D) * torch.einsum("btd,bte->de", v, v) @ a.detach()
    torch.testing.assert_close(a.grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("injection", ["mlp", "lanes"])
def test_jacobian_penalty_of_a_network(injection):
    """Against the whole Jacobian, formed by autograd; and its gradient reaches the blocks."""
    model = network(injection=injection)
    wide = D * (2 if injection == "lanes" else 1)
    v = torch.randn(2, 4, wide)
    output = model(*data(), iterations=3, gradient=Gradient(jacobian=v))
    output.jacobian.sum().backward()
    assert model.implicit.blocks[0].mlp.fc1.weight.grad.abs().max() > 0
    x, t, y = data()
    c_y = model.y_embedder(y)
    x_pre = model.embed(x)
    for block in model.pre_blocks:
        x_pre = block(x_pre, block.modulation(c_y))
    layer, c = model.implicit, model.t_embedder(t) + c_y
    constants, state = layer.constants(x_pre, c), layer.injection.start(x_pre)
    for loop in range(3):
        state = layer(state, constants.at(loop))
    whole = torch.autograd.functional.jacobian(lambda state: layer(state, constants.at(2)), state.detach())
    expected = torch.einsum("bnd,bndcmf->bcmf", v, whole)  # of output row b after input row c
    for row in range(2):
        torch.testing.assert_close(output.jacobian[row], expected[row, row].square().mean(), atol=1e-5, rtol=1e-3)
