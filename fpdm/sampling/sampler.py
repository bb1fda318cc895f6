"""Runs a plan: moves the latent from timestep to timestep.

B batch, C latent channels, H height and width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fpdm.sampling.call import Call, ModelCalls
from fpdm.sampling.plan import Plan
from fpdm.sampling.solvers import Advance


@torch.no_grad()
def run_plan(
    calls: ModelCalls,
    plan: Plan,
    x: Tensor,
    advance: Advance,
    on_step: Callable[[int, Call], None] | None = None,
) -> Tensor:
    """Noise x (B, C, H, W) -> clean latents (B, C, H, W).

    calls, advance: the model calls and the solver, see `ModelCalls` and `make_solver`; make new ones for each run.
    on_step: called with (position, the call's result) after each model call.
    """
    for i, step in enumerate(plan.steps):
        found = calls(x, step.t, calls.source.process.level(step.t), step.iterations)
        x = advance(i, x, found.x0, found.eps, found.variance)
        if on_step is not None:
            on_step(i, found)
    return x
