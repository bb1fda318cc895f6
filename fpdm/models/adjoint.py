"""Implicit differentiation: the gradient at a fixed point, by solving the adjoint equation y = v + J^T y per sample.

With h* = g(h*; theta), the implicit function theorem gives dL/dtheta = y^T dg/dtheta, where v = dL/dh* and J = dg/dh at
h* (Bai et al., 2019, Theorem 1). J is never formed: a product J^T y is one backward pass through one update.

B batch, N tokens, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.models.anderson import Anderson, relative_residual

Update = Callable[[Tensor], Tensor]


class Totals(NamedTuple):
    """Of some solves: products with J^T, the number of solves, and the number of samples that failed."""

    products: int = 0
    solves: int = 0
    failures: int = 0


class Adjoint:
    """Attaches the adjoint solve to an update, and counts what it took.

    solver: one of ADJOINT_SOLVERS. tolerance: relative residual at which a sample's solve ends. most: largest number of
    products with J^T. A sample that does not reach the tolerance is counted in `failures`, and keeps its last iterate,
    or v itself (which is Jacobian-free backpropagation) where that is not finite.

    totals: since they were last taken.
    """

    def __init__(self, solver: str, tolerance: float, most: int):
        self.solver, self.tolerance, self.most = ADJOINT_SOLVERS[solver], tolerance, most
        self.totals = Totals()

    def take(self) -> Totals:
        """The totals since the last call of this."""
        taken, self.totals = self.totals, Totals()
        return taken

    def __call__(self, update: Update, state: Tensor) -> Tensor:
        """update(state) at a solution (B, N, D). Its backward pass solves the adjoint equation first."""
        if not torch.is_grad_enabled():
            return update(state)
        point = state.detach().requires_grad_()
        new = update(point)

        def product(y: Tensor) -> Tensor:
            return torch.autograd.grad(new, point, y, retain_graph=True)[0]

        out = new.view_as(new)  # so that the hook is not on the tensor that `product` goes through
        out.register_hook(lambda v: self.solve(product, v))
        return out

    @torch.no_grad()
    def solve(self, product: Update, v: Tensor) -> Tensor:
        """y = v + J^T y; v (B, N, D), the gradient at the solution."""
        made = 0

        def counted(y: Tensor) -> Tensor:
            nonlocal made
            made += 1
            with torch.enable_grad():
                return v + product(y)

        y, residual = self.solver(counted, v, self.tolerance, self.most)
        failed = int((~(residual <= self.tolerance)).sum())
        before = self.totals
        self.totals = Totals(before.products + made, before.solves + 1, before.failures + failed)
        finite = y.flatten(1).isfinite().all(1)[:, None, None]
        return torch.where(finite, y, v)


class Found:
    """The iterates of a solve, each sample's kept as it was when its residual met the tolerance: a sample's result does
    not depend on the others in its batch. y (B, N, D), residual (B,)."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.y = self.residual = self._done = None

    def add(self, new: Tensor, residual: Tensor) -> bool:
        """Keep the new iterates of the samples that are not done; returns whether all are done now."""
        if self._done is None:
            self.y, self.residual = new, residual
        else:
            self.y = torch.where(self._done[:, None, None], self.y, new)
            self.residual = torch.where(self._done, self.residual, residual)
        self._done = self.residual <= self.tolerance
        return bool(self._done.all())


def fixed_point(update: Update, start: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor]:
    """Plain iteration. Returns the last iterate and its residual (B,); so do the other solvers."""
    y, found = start, Found(tolerance)
    for _ in range(most):
        new = update(y)
        if found.add(new, relative_residual(new, y)):
            break
        y = new
    return found.y, found.residual


def anderson(update: Update, start: Tensor, tolerance: float, most: int, memory: int = 5) -> tuple[Tensor, Tensor]:
    """Anderson acceleration, for each sample by itself."""
    y, accelerate, found = start, Anderson(memory), Found(tolerance)
    for _ in range(most):
        new = update(y)
        if found.add(new, relative_residual(new, y)):
            break
        y = accelerate(y, new)
    return found.y, found.residual


def broyden(update: Update, start: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor]:
    """Broyden's method (good form) on f(y) = update(y) - y, for each sample by itself; all rank-one updates are kept.

    The inverse Jacobian begins as -1, which makes the first step plain iteration. With s the last step and d the change
    of f, Broyden's update and the Sherman-Morrison formula give H <- H + (s - H d) (s^T H) / (s^T H d).
    """
    y, found = start.flatten(1), Found(tolerance)
    f = update(start).flatten(1) - y
    left, right = [], []  # H = -1 + sum_i left_i right_i^T, (B, N * D) each

    def inverse(x: Tensor) -> Tensor:  # H x
        for_each = (u * (w * x).sum(1, keepdim=True) for u, w in zip(left, right, strict=True))
        return sum(for_each, -x)

    def transposed(x: Tensor) -> Tensor:  # H^T x
        for_each = (w * (u * x).sum(1, keepdim=True) for u, w in zip(left, right, strict=True))
        return sum(for_each, -x)

    for made in range(1, most + 1):
        new = (f + y).view_as(start)
        if found.add(new, relative_residual(new, y.view_as(start))) or made == most:
            break
        step = -inverse(f)
        y = y + step
        before, f = f, update(y.view_as(start)).flatten(1) - y
        change = f - before
        row, moved = transposed(step), inverse(change)
        scale = (step * moved).sum(1, keepdim=True)
        safe = scale.abs() > torch.finfo(torch.float32).eps * step.square().sum(1, keepdim=True)
        left.append(torch.where(safe, (step - moved) / torch.where(safe, scale, 1), 0))
        right.append(row)
    return found.y, found.residual


ADJOINT_SOLVERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "fixed-point": fixed_point,
    "anderson": anderson,
    "broyden": broyden,
}
