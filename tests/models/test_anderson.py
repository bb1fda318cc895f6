"""Anderson acceleration: exact where it must be, each sample by itself, never worse than taken back."""

import pytest
import torch
from torch import nn

from fpdm.models import FixedPointDiT
from fpdm.models.anderson import Anderson
from fpdm.models.implicit import Constants, iterate, iterate_until


def linear_map(size=6, samples=3, rate=0.9):
    """h -> A h + b for each sample, with its fixed point; A symmetric with eigenvalues up to `rate`."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(samples, size, size, generator=generator)).Q
    values = torch.linspace(-rate, rate, size)
    matrix = basis * values @ basis.mT
    b = torch.randn(samples, size, 1, generator=generator)
    fixed = torch.linalg.solve(torch.eye(size) - matrix, b)
    return lambda h, loop=0: (matrix @ h.mT + b).mT, fixed.mT  # (samples, 1, size)


def distance(h, fixed):
    return (h - fixed).flatten(1).norm(dim=1)


@pytest.mark.parametrize("memory", [1, 2, 3, 4, 5])
def test_a_longer_memory_solves_a_linear_problem_faster(memory):
    """Where plain iteration gains a factor 0.9 per update, after twelve of them."""
    update, fixed = linear_map()
    start = torch.zeros_like(fixed)
    plain, _ = iterate(update, start, 12)
    ours, _ = iterate(update, start, 12, accelerate=Anderson(memory, regularisation=1e-10))
    gained = distance(ours, fixed) / distance(plain, fixed)
    assert (gained < {1: 0.99, 2: 0.5, 3: 0.15, 4: 0.02, 5: 2e-3}[memory]).all(), gained


def test_one_dimension_is_solved_by_the_secant():
    """In one dimension a memory of 1 is the secant method, exact on a line after two updates; the third stays there."""
    slope, b = torch.tensor([0.5, -0.8, 0.95])[:, None, None], torch.tensor([1.0, 2.0, -1.0])[:, None, None]
    h, _ = iterate(lambda h, loop: slope * h + b, torch.zeros(3, 1, 1), 3, accelerate=Anderson(1, regularisation=1e-12))
    torch.testing.assert_close(h, b / (1 - slope), atol=1e-4, rtol=1e-4)


def test_regularisation_leads_to_plain_iteration():
    update, fixed = linear_map()
    plain, _ = iterate(update, torch.zeros_like(fixed), 5)
    ours, _ = iterate(update, torch.zeros_like(fixed), 5, accelerate=Anderson(3, regularisation=1e12))
    torch.testing.assert_close(ours, plain)


def test_samples_do_not_see_each_other():
    update, fixed = linear_map()
    together, _ = iterate(update, torch.zeros_like(fixed), 6, accelerate=Anderson(3))
    for i in range(len(fixed)):

        def alone(h, loop, i=i):
            return update(h.expand_as(fixed))[i : i + 1]

        h, _ = iterate(alone, torch.zeros_like(fixed[:1]), 6, accelerate=Anderson(3))
        torch.testing.assert_close(h, together[i : i + 1])


def kinked(h, loop=0):
    """Steep, then flat, with the fixed point 1.5: a secant through the steep part overshoots to 5."""
    return torch.where(h < 1, 0.9 * h + 0.5, 0.2 * h + 1.2)


def test_a_step_that_makes_it_worse_is_taken_back():
    solver, seen, h = Anderson(1, regularisation=1e-12), [], torch.zeros(1, 1, 1)
    for _ in range(3):
        new = kinked(h)
        seen.append((float(h), float(new)))
        h = solver(h, new)
    assert seen[2][0] == pytest.approx(5, rel=1e-3)  # the line through the first two updates meets h at 5
    assert solver.fallbacks.tolist() == [1]
    assert float(h) == pytest.approx(seen[1][1])  # what plain iteration had after its second update


@pytest.mark.parametrize("count", range(1, 9))
def test_no_solve_ends_with_a_step_that_nothing_has_judged(count):
    """Wherever it ends, the residual of the solution is no larger than the best that plain iteration had before."""
    start = torch.zeros(1, 1, 1)
    h, _ = iterate(kinked, start, count, accelerate=Anderson(1, regularisation=1e-4))
    plain = [iterate(kinked, start, n)[0] for n in range(1, count + 1)]
    assert abs(float(h) - 1.5) <= abs(float(plain[max(0, count - 3)]) - 1.5) + 1e-6
    if count < 3:
        assert torch.equal(h, plain[-1])


def test_a_solve_that_meets_the_tolerance_ends_with_its_update():
    """The residual after the second update meets it; what Anderson would try next is not returned."""
    layer = lambda h, constants, loop: kinked(h)  # noqa: E731
    constants = Constants(((),), ((),))
    solution, residuals, counts, fallbacks = iterate_until(
        layer, torch.zeros(1, 1, 1), constants, 0.6, torch.tensor([40]), Anderson(1)
    )
    assert counts.tolist() == [2] and float(solution) == pytest.approx(0.95) and fallbacks.tolist() == [0]
    assert residuals[0, 1] <= 0.6


def test_what_is_not_finite_is_taken_back():
    def update(h, loop=0):
        return torch.where(h > 3, torch.nan, 0.9 * h + 0.5)

    solver = Anderson(1, regularisation=1e-12)
    h, _ = iterate(update, torch.zeros(2, 1, 1), 3, accelerate=solver)
    assert h.isfinite().all() and solver.fallbacks.tolist() == [1, 1]
    for count in range(3, 12):
        h, _ = iterate(update, torch.zeros(2, 1, 1), count, accelerate=Anderson(1, regularisation=1e-12))
        assert h.isfinite().all()
    layer, constants = (lambda h, constants, loop: update(h)), Constants(((),), ((),))
    solution, _, counts, _ = iterate_until(
        layer, torch.zeros(1, 1, 1), constants, 1e-3, torch.tensor([9]), Anderson(1, regularisation=1e-12)
    )
    assert counts.tolist() == [9] and solution.isfinite().all()  # it goes on after the step that was taken back


def test_a_converged_sample_stays():
    update, fixed = linear_map()
    h, _ = iterate(update, fixed, 8, accelerate=Anderson(5))
    torch.testing.assert_close(h, fixed, atol=1e-5, rtol=1e-4)


def small() -> FixedPointDiT:
    torch.manual_seed(0)
    model = FixedPointDiT(
        input_size=8, patch_size=2, in_channels=4, hidden_size=32, num_heads=2, num_classes=10, class_dropout=0.0
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08)
    return model.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([999, 500, 0]), torch.tensor([0, 4, 9])


@torch.no_grad()
def residual_after(model, **kwargs):
    solution = model(*inputs(), **kwargs).solution
    return model(*inputs(), iterations=1, init=solution, with_residuals=True).residuals[:, 0]


@torch.no_grad()
def test_the_network_is_solved_no_worse():
    model = small()
    plain, ours = (residual_after(model, iterations=6, anderson=memory) for memory in (0, 3))
    assert (ours < plain).all(), (plain, ours)
    ends = [model(*inputs(), iterations=40, anderson=memory).solution for memory in (0, 1, 3, 5)]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_up_to_two_updates_are_plain_and_half_precision_works():
    model = small()
    for count in (1, 2):
        plain = model(*inputs(), iterations=count).solution
        torch.testing.assert_close(model(*inputs(), iterations=count, anderson=3).solution, plain)
    exact = model(*inputs(), iterations=5, anderson=2)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*inputs(), iterations=5, anderson=2)
    assert exact.fallbacks.shape == (3,)
    torch.testing.assert_close(half.prediction, exact.prediction, atol=0.05, rtol=0.1)


@torch.no_grad()
def test_with_a_tolerance_no_more_updates_reach_it():
    model, tolerance = small(), 1e-4
    plain, ours = (model(*inputs(), iterations=60, tolerance=tolerance, anderson=memory) for memory in (0, 3))
    assert (ours.counts <= plain.counts).all() and ours.fallbacks.shape == (3,)
    for i in range(3):  # alone as together
        x, t, y = (part[i : i + 1] for part in inputs())
        alone = model(x, t, y, iterations=60, tolerance=tolerance, anderson=3)
        assert alone.counts.tolist() == ours.counts[i : i + 1].tolist()
        torch.testing.assert_close(alone.solution, ours.solution[i : i + 1], atol=1e-4, rtol=1e-3)


def test_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="anderson=2: only for sampling"):
        small()(*inputs(), iterations=2, anderson=2)
    with pytest.raises(ValueError, match="anderson=-1"), torch.no_grad():
        small()(*inputs(), iterations=2, anderson=-1)
