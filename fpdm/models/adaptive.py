"""Iteration of each sample until its residual is small: what adaptive allocation runs.

B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from fpdm.models.anderson import Anderson
from fpdm.models.fixed_point import Constants, ImplicitLayer, relative_residual


def iterate_until(
    layer: ImplicitLayer,
    h: Tensor,
    constants: Constants,
    tolerance: float,
    at_most: Tensor,
    accelerate: Anderson | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Iterate each sample until its residual is at most `tolerance`, or `at_most` (B,) updates are done.

    Samples that are done leave the batch, so the others alone cost; every sample gets at least
    one update. h (B, N, D). Returns the last iterates; the residual of each update, (B, most
    updates of any sample) with NaN where a sample had fewer; the updates of each sample (B,);
    and, with Anderson acceleration, how many of its steps were taken back (B,).
    Waits for the device at every update.
    """
    solution, counts = h.clone(), torch.zeros(len(h), dtype=torch.long, device=h.device)
    fallbacks = None if accelerate is None else torch.zeros_like(counts)
    residuals = []
    active = torch.arange(len(h), device=h.device)
    while len(active):
        new = layer(h, constants)
        residual = relative_residual(new, h)
        counts[active] += 1
        going = ~(residual <= tolerance) & (counts[active] < at_most[active])  # also where it is not a number
        if accelerate is not None:
            chosen = accelerate(h, new)
            new = torch.where(going[:, None, None], chosen, accelerate.settled(new))
            fallbacks[active] = accelerate.fallbacks
        solution[active] = new.to(solution.dtype)
        residuals.append(torch.full((len(counts),), torch.nan, device=h.device).index_copy(0, active, residual))
        h, constants, active = new[going], constants.rows(going), active[going]
        if accelerate is not None:
            accelerate.rows(going)
    return solution, torch.stack(residuals, dim=1), counts, fallbacks
