"""Runs a plan: carries the latent and, with reuse, the solution from timestep to timestep.

B batch, C latent channels, H height and width, N tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpdm.diffusion import Diffusion
from fpdm.sampling.guidance import guide
from fpdm.sampling.plan import Plan
from fpdm.sampling.steps import ddim_step, ddpm_step, step_coefficients


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
    reuse: bool = False,
    cfg_scale: float = 1.0,
    cfg_channels: int | None = None,
    null_label: int | None = None,
    clip_x0: float | None = None,
    on_step: Callable[[int, Any, Tensor], None] | None = None,
) -> Tensor:
    """Noise x (B, C, H, H) and labels y (B,) -> clean latents (B, C, H, H).

    denoise: called as `denoise(x, t, y)`, or `denoise(x, t, y, iterations=k, init=h)` where
        the plan has iterations; returns an object with `.prediction` and `.solution`.
    step_noise: fresh noise (B, C, H, H) of step i; needed by ddpm, and by ddim with eta > 0.
    reuse: start each solve from the last timestep's solution (Sec. 3.3).
    cfg_scale: guidance, 1 for none; runs the batch twice, with y and with `null_label`.
    clip_x0: limit predicted images to -clip..clip; for pixels, whose range is known.
    on_step: called with (position, output of denoise, predicted x0) at each step.
    """
    iterative = plan.steps[0].iterations is not None
    _check(iterative, sampler, eta, reuse, cfg_scale, null_label, step_noise)
    guided = cfg_scale != 1.0
    labels = torch.cat([y, torch.full_like(y, null_label)]) if guided else y
    solution = None
    for i, (step, c) in enumerate(
        zip(plan.steps, step_coefficients(diffusion.alphas_cumprod, plan.timesteps), strict=True)
    ):
        inputs = torch.cat([x, x]) if guided else x
        t = torch.full((len(inputs),), step.t, device=x.device)
        extra = {"iterations": step.iterations, "init": solution} if iterative else {}
        output = denoise(inputs, t, labels, **extra)
        if reuse:
            solution = output.solution
        prediction = output.prediction.float()
        if guided:
            prediction = guide(prediction, cfg_scale, x.shape[1], cfg_channels)
        mean, variance = diffusion.split(prediction)
        x0, eps = diffusion.x0_and_eps(mean, x, c.alpha_bar)
        if clip_x0 is not None:
            x0 = x0.clamp(-clip_x0, clip_x0)
            eps = (x - c.alpha_bar**0.5 * x0) / (1 - c.alpha_bar) ** 0.5
        noise = step_noise(i) if step_noise is not None and c.alpha_bar_next != 1 else None
        x = ddpm_step(x, x0, variance, c, noise) if sampler == "ddpm" else ddim_step(x0, eps, c, eta, noise)
        if on_step is not None:
            on_step(i, output, x0)
    return x


def _check(iterative, sampler, eta, reuse, cfg_scale, null_label, step_noise) -> None:
    if sampler not in ("ddpm", "ddim"):
        raise ValueError(f"sampler={sampler!r}: choose ddpm or ddim")
    if reuse and not iterative:
        raise ValueError("reuse=true: an explicit model (DiT) has no solution to reuse")
    if cfg_scale != 1.0 and null_label is None:
        raise ValueError(
            f"cfg_scale={cfg_scale}: this model has no trained null label (class_dropout 0), so guidance "
            "has nothing to compare with; use cfg_scale 1"
        )
    if step_noise is None and (sampler == "ddpm" or eta > 0):
        raise ValueError(f"sampler={sampler}, eta={eta}: needs step_noise")
