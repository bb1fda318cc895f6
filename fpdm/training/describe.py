"""A summary of an experiment: the network, and what a step costs in computation and memory."""

import math
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fpdm.config import ExperimentConfig
from fpdm.cost import ForwardCost
from fpdm.data.latents import LatentStore, check_std
from fpdm.models import Denoiser
from fpdm.training.setup import split_batch
from fpdm.training.sjfb import SJFBConfig, mean_iterations
from fpdm.training.step_memory import StepMemory, step_memory

GIB = 2**30
COUNTED_UPDATES = 24  # beyond these, each update with gradient adds as much as the one before


class Phase(NamedTuple):
    """Updates of one step: n without gradient, m with."""

    name: str
    n: float
    m: float


def first_screen(
    config: ExperimentConfig,
    network: Denoiser,
    cost: ForwardCost,
    store: LatentStore,
    run: Path,
    start: int,
    processes: int,
) -> str:
    """Model, data, cost and memory of a run that begins at step `start`."""
    steps, manifest = config.optim.steps, store.manifest
    resumed = f", resumed at step {start} of {steps}" if start else ""
    lines = [
        f"{config.model.name} -> {run}{resumed}{': nothing left to do' if start >= steps else ''}",
        model_table(network),
        f"  data          {manifest.count:,d} latents {tuple(manifest.shape)}, {len(manifest.class_names)} class(es), "
        f"{manifest.flips} flip(s), from {store.folder}",
        describe_cost(config, network, cost),
        describe_memory(config, network, processes),
    ]
    warning = check_std(manifest)
    return "\n".join([*lines, warning] if warning else lines)


def phases(config: SJFBConfig, network: Denoiser) -> list[Phase]:
    """The average step and the largest step; only one phase if all steps are alike."""
    if not network.iterative:
        return [Phase("every step", 0, 0)]
    mean = Phase("on average", *mean_iterations(config))
    if config.variant != "stochastic":
        return [mean._replace(name="every step")]
    return [mean, Phase("at most", config.no_grad, config.grad)]


def describe_cost(config: ExperimentConfig, network: Denoiser, cost: ForwardCost) -> str:
    """Block passes and FLOPs of a step."""
    lines = []
    for name, n, m in phases(config.sjfb, network):
        passes, kept = cost.blocks(n + m), cost.blocks(m)
        flops = config.optim.batch_size * cost.training_flops(n, m)
        with_gradient = f", {kept:g} of them with gradient" if n else ""
        lines.append(
            f"{passes:g} block passes forward per image{with_gradient}; {flops / 1e12:.3g} TFLOPs per step {name}"
        )
    return labelled("step", lines)


def describe_memory(config: ExperimentConfig, network: Denoiser, processes: int) -> str:
    """Expected memory of each of `processes` processes."""
    rows, micro_batch = split_batch(config.optim, 0, processes)
    gradients_stay = processes > 1 or micro_batch < rows.stop
    lines = []
    for name, n, m in phases(config.sjfb, network):
        memory = expected_memory(config, network, micro_batch, gradients_stay, n, m)
        *parts, (_, peak) = memory._asdict().items()
        listed = ", ".join(f"{part} {value / GIB:.2f}" for part, value in parts)
        lines.append(f"{peak / GIB:.2f} GiB {name}, {micro_batch} samples at a time ({listed})")
    return labelled("memory", lines)


def describe_share(config: ExperimentConfig, processes: int) -> str:
    """What the memory estimate covers and, for one process, how to get it for several."""
    rows, micro_batch = split_batch(config.optim, 0, processes)
    batch = config.optim.batch_size
    lines = [
        "This counts the operations only; the allocator and the libraries need more.",
        f"It is for each of {processes} processes, which takes {rows.stop} of the {batch} samples of a step, "
        f"{micro_batch} at a time.",
    ]
    if processes == 1:
        lines[1] = f"It is for 1 process, which takes all {batch} samples of a step, {micro_batch} at a time."
        lines.append("For 8 processes, start the dry run with torchrun --nproc_per_node=8.")
    return labelled("", lines)


def expected_memory(
    config: ExperimentConfig,
    network: Denoiser,
    micro_batch: int,
    gradients_stay: bool,
    n: float,
    m: float,
) -> StepMemory:
    """Memory of a step in one process; averages of n and m are rounded up. Counting takes seconds for any n and m."""
    half, recompute = config.run.mixed_precision != "no", config.run.gradient_checkpointing
    m, n = math.ceil(m), min(math.ceil(n), 1)  # updates without gradient keep nothing: one is enough

    def count(updates: int) -> StepMemory:
        iterations = {"iterations": updates, "iterations_no_grad": n} if updates else {}
        return step_memory(network, micro_batch, half, recompute, gradients_stay, **iterations)

    if m <= COUNTED_UPDATES:
        return count(m)
    fewer, last = count(COUNTED_UPDATES - 1), count(COUNTED_UPDATES)
    more = m - COUNTED_UPDATES
    return StepMemory(*(after + more * (after - before) for before, after in zip(fewer, last, strict=True)))


def labelled(label: str, lines: list[str]) -> str:
    """Lines in a column, with a label before the first."""
    return "\n".join(f"  {label if i == 0 else '':<14s}{line}" for i, line in enumerate(lines))


def model_table(model: nn.Module) -> str:
    """Top-level modules with their trainable parameters, one per line."""
    rows = [(name, type(child).__name__, _parameters(child)) for name, child in model.named_children()]
    rows.append(("total", type(model).__name__, _parameters(model)))
    return "\n".join(f"  {name:<14s}{kind:<18s}{count:>14,d}" for name, kind, count in rows)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
