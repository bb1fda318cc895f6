"""The section of the report that asks what more timesteps change: the standard deviation of sampled latents."""

import numpy as np
import torch
from torch import Tensor

from fpdm.data.latents import LatentStore
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.ladder import with_iterations
from fpdm.sampling.call import ModelCalls, Source
from fpdm.sampling.generate import conditions_for, plan_for
from fpdm.sampling.noise import image_noise
from fpdm.sampling.sampler import run_plan
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import make_solver

NETWORKS = {"dit-12": {}, "dit-3": {}, "fpdm": {"iterations": 2}}
SAMPLERS, TIMESTEPS = ("ab2", "ddim"), (5, 10, 20, 40)
COUNT = 1_000  # latents of each
BATCH = 100


def spread_of_latents(bench: Bench) -> Section:
    """Deterministic solvers of some networks at some numbers of timesteps, beside the training latents."""
    rows = []
    for name, way in NETWORKS.items():
        source = bench.trained(bench.runs(name)[0]).contender.source
        for sampler in SAMPLERS:
            cells = [f"{_sampled(source, steps=t, sampler=sampler, **way).std():.3f}" for t in TIMESTEPS]
            rows.append([bench.subject.entrants[name].label + with_iterations(way), sampler, *cells])
    text = (
        f"The standard deviation of {COUNT:,d} sampled latents. That of as many latents of training images, drawn from "
        f"their mean and deviation, is {_real(bench).std():.3f}."
    )
    table = markdown_table(["", "solver", *(f"{t} timesteps" for t in TIMESTEPS)], rows, 2)
    return Section("Standard deviation of sampled latents", f"{text}\n\n{table}")


def _real(bench: Bench) -> Tensor:
    """Latents (COUNT, C, h, w) of training images, evenly spread."""
    store = LatentStore(bench.out / "latents")
    mean, std = store.read(np.linspace(0, len(store) - 1, COUNT).astype(int)).moments()
    return mean if std is None else mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _sampled(source: Source, **settings) -> Tensor:
    """Latents (COUNT, C, h, w) before they are decoded, on the CPU."""
    config = SamplingConfig(**settings)
    plan, parts = plan_for(source, config), []
    for first in range(0, COUNT, BATCH):
        indices = range(first, min(first + BATCH, COUNT))
        y = conditions_for(source, config, indices).to(source.device)
        noise = image_noise(config.seed, indices, 0, source.latent_shape).to(source.device)
        calls = ModelCalls(source, y, config.guidance, config.solving)
        parts.append(run_plan(calls, plan, noise, make_solver(config.sampler, source.process, plan.timesteps)).cpu())
    return torch.cat(parts)
