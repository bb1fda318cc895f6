"""Gaussian data with an exact denoiser, N(MEAN, STD^2) in every value, to measure the errors of solvers."""

from types import SimpleNamespace

import torch
from torch import Tensor

from fpdm.cost import ForwardCost
from fpdm.processes import Diffusion, Process
from fpdm.sampling.call import ModelCalls, Source
from fpdm.sampling.guidance import Guidance
from fpdm.sampling.plan import make_plan
from fpdm.sampling.sampler import run_plan
from fpdm.sampling.solvers import SOLVERS, make_solver
from fpdm.sampling.solving import Solving

MEAN, STD = 0.7, 0.4
SAMPLES = 64


class ExactDenoiser:
    """E[x0 | x_t] in the process's parametrisation, with the call signature of a model that sees timesteps as they
    are."""

    def __init__(self, process: Process):
        self.process = process

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, **_) -> SimpleNamespace:
        level = self.process.level(float(t[0]))
        away = (x - level.signal * MEAN) / (level.signal**2 * STD**2 + level.noise**2)
        x0, eps = MEAN + level.signal * STD**2 * away, level.noise * away
        return SimpleNamespace(prediction=self.process.target(x0, eps, t), solution=None)


def exact_source(process: Process) -> Source:
    """A source whose model is the exact denoiser, with one channel of 2 x 2 values."""
    return Source(ExactDenoiser(process), process, ForwardCost(1), (1, 2, 2))


def solver_error(
    sampler: str, steps: int, down_to_zero: bool | None = None, process: Process | None = None, shift: float = 1.0
) -> float:
    """Largest error of a deterministic solver over SAMPLES x 4 values; the exact flow ends at MEAN + STD z.

    down_to_zero: whether the timesteps end at 0; by default as in this solver's plans. process: one whose network sees
    timesteps as they are; the paper's by default. shift: of continuous time.
    """
    process = process or Diffusion(learn_sigma=False)
    z = torch.randn(SAMPLES, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    solver, source = SOLVERS[sampler], exact_source(process)
    spacing = solver.spacing if down_to_zero is None else solver.spacing._replace(down_to_zero=down_to_zero)
    plan = make_plan(source.cost, steps=steps, times=process.times(shift), spacing=spacing)
    calls = ModelCalls(source, torch.zeros(SAMPLES).long(), Guidance(), Solving())
    x = run_plan(calls, plan, z, make_solver(sampler, process, plan.timesteps))
    return float((x - MEAN - STD * z).abs().max())
