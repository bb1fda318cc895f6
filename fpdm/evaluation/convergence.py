"""Convergence of solves: the residuals of their initial values and of their solutions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.settings import SamplingConfig


def solve_residuals(source: Source, config: SamplingConfig, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sample images from an FPDM; returns the initial and the final residual of each solve, (B, S) each, S model calls.

    The final residual ||g(h) - h|| / ||g(h)|| of a solution h takes one update more than sampling.
    """
    plan = plan_for(source, config)
    starts, ends = [], []

    def watched(x: Tensor, t: Tensor, y: Tensor, **settings):
        settings.setdefault("with_residuals", True)
        output = source.denoise(x, t, y, **settings)
        more = source.denoise(x, t, y, iterations=1, init=output.solution, with_residuals=True)
        starts.append(output.residuals[: len(indices), 0])  # guidance doubles the batch
        ends.append(more.residuals[: len(indices), 0])
        return output

    with torch.inference_mode():
        sample_images(source._replace(denoise=watched), config, plan, indices)
    return tuple(torch.stack(values, dim=1).float().cpu().numpy() for values in (starts, ends))
