"""Gaussian data with an exact denoiser, N(MEAN, STD^2) in every value, to measure the errors of solvers."""

from types import SimpleNamespace

import torch
from torch import Tensor

from fpdm.cost import ForwardCost
from fpdm.diffusion import Diffusion
from fpdm.sampling.call import ModelCalls, Source
from fpdm.sampling.guidance import Guidance
from fpdm.sampling.plan import make_plan
from fpdm.sampling.sampler import run_plan
from fpdm.sampling.solvers import SOLVERS, make_solver
from fpdm.sampling.solving import Solving

MEAN, STD = 0.7, 0.4
SAMPLES = 64


class ExactDenoiser:
    """E[x0 | x_t] in the diffusion's parametrisation, with the call signature of a model."""

    def __init__(self, diffusion: Diffusion):
        self.diffusion = diffusion

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, **_) -> SimpleNamespace:
        alpha_bar = float(self.diffusion.alphas_cumprod[int(t[0])])
        signal = alpha_bar**0.5
        x0 = MEAN + signal * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar) * (x - signal * MEAN)
        return SimpleNamespace(prediction=self.diffusion.mean_of(x0, x, alpha_bar), solution=None)


def exact_source(diffusion: Diffusion) -> Source:
    """A source whose model is the exact denoiser, with one channel of 2 x 2 values."""
    return Source(ExactDenoiser(diffusion), diffusion, ForwardCost(1), (1, 2, 2))


def solver_error(sampler: str, steps: int, down_to_zero: bool | None = None) -> float:
    """Largest error of a deterministic solver over SAMPLES x 4 values; the exact flow ends at MEAN + STD z.

    down_to_zero: whether the timesteps end at 0; by default as in this solver's plans.
    """
    diffusion = Diffusion(learn_sigma=False)
    z = torch.randn(SAMPLES, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    solver, source = SOLVERS[sampler], exact_source(diffusion)
    spacing = solver.spacing if down_to_zero is None else solver.spacing._replace(down_to_zero=down_to_zero)
    plan = make_plan(source.cost, steps=steps, spacing=spacing)
    calls = ModelCalls(source, torch.zeros(SAMPLES).long(), Guidance(), Solving())
    x = run_plan(calls, plan, z, make_solver(sampler, diffusion.alphas_cumprod, plan.timesteps))
    return float((x - MEAN - STD * z).abs().max())
