"""Runs a plan: carries the latent and, with reuse, the solution from timestep to timestep.

B batch, C latent channels, H height and width, N tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fpdm.diffusion import Diffusion
from fpdm.sampling.guidance import guide, guided
from fpdm.sampling.plan import Plan
from fpdm.sampling.solvers import make_solver
from fpdm.sampling.starts import Starts


@torch.no_grad()
def sample(
    denoise: Callable[..., Any],
    diffusion: Diffusion,
    plan: Plan,
    x: Tensor,
    y: Tensor,
    *,
    step_noise: Callable[[int], Tensor] | None = None,
    sampler: str = "ddim",
    eta: float = 0.0,
    starts: Starts | None = None,
    anderson: int = 0,
    tolerance: float | None = None,
    most: int | None = None,
    cfg_scale: float = 1.0,
    cfg_channels: int | None = None,
    cfg_interval: Sequence[int] | None = None,
    guidance_rescale: float = 0.0,
    null_label: int | None = None,
    clip_x0: float | None = None,
    on_step: Callable[[int, Any, Tensor], None] | None = None,
    with_residuals: bool = False,
) -> Tensor:
    """Noise x (B, C, H, H) and labels y (B,) -> clean latents (B, C, H, H).

    denoise: called as `denoise(x, t, y)`, or `denoise(x, t, y, iterations=k, init=start)` where
        the plan has iterations; returns an object with `.prediction` and `.solution`.
    step_noise: fresh noise (B, C, H, H) of step i; needed by ddpm, and by ddim with eta > 0.
    starts: start each solve from the solutions before it (Sec. 3.3); one for each run.
    anderson: memory of Anderson acceleration, asked of denoise; 0 for plain iteration.
    tolerance: adaptive allocation: each sample is iterated until its residual is this small, at least
        once and at most `most` times, and its updates over the whole run are at most the plan's.
    cfg_scale: guidance, 1 for none; runs the batch twice, with y and with `null_label`, at the
        timesteps in cfg_interval (lowest, highest; None for all).
    clip_x0: limit predicted images to -clip..clip; for pixels, whose range is known.
    on_step: called with (position, output of denoise, predicted x0) at each step.
    with_residuals: ask denoise for the residual of each update.
    """
    iterative = plan.steps[0].iterations is not None
    _check(iterative, starts is not None, cfg_scale, null_label)
    advance = make_solver(sampler, diffusion.alphas_cumprod, plan.timesteps, eta, step_noise)
    both = None if null_label is None else torch.cat([y, torch.full_like(y, null_label)])
    left = torch.full((2 * len(x),), sum(plan.iterations), device=x.device)  # updates, of each row
    for i, step in enumerate(plan.steps):
        alpha_bar = float(diffusion.alphas_cumprod[step.t])
        doubled = guided(cfg_scale, cfg_interval, step.t)
        inputs, labels = (torch.cat([x, x]), both) if doubled else (x, y)
        t = torch.full((len(inputs),), step.t, device=x.device)
        start = None if starts is None else starts.at(alpha_bar, len(inputs))
        extra = {"iterations": step.iterations, "init": start} if iterative else {}
        if anderson:
            extra["anderson"] = anderson
        if tolerance is not None:
            # One update is kept back for each timestep to come.
            most_now = (left[: len(inputs)] - (len(plan.steps) - 1 - i)).clamp(1, most)
            extra |= {"iterations": most_now, "tolerance": tolerance}
        elif iterative and with_residuals:
            extra["with_residuals"] = True
        output = denoise(inputs, t, labels, **extra)
        if tolerance is not None:
            left[: len(inputs)] -= output.counts
        if starts is not None:
            starts.add(alpha_bar, output.solution)
        prediction = output.prediction.float()
        if doubled:
            prediction = guide(prediction, cfg_scale, x.shape[1], cfg_channels, guidance_rescale)
        mean, variance = diffusion.split(prediction)
        x0, eps = diffusion.x0_and_eps(mean, x, alpha_bar)
        if clip_x0 is not None:
            x0 = x0.clamp(-clip_x0, clip_x0)
            eps = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
        x = advance(i, x, x0, eps, variance)
        if on_step is not None:
            on_step(i, output, x0)
    return x


def _check(iterative: bool, reuse: bool, cfg_scale: float, null_label: int | None) -> None:
    if reuse and not iterative:
        raise ValueError("reuse=true: an explicit model (DiT) has no solution to reuse")
    if cfg_scale != 1.0 and null_label is None:
        raise ValueError(
            f"cfg_scale={cfg_scale}: this model has no trained null label (class_dropout 0), so guidance "
            "has nothing to compare with; use cfg_scale 1"
        )
