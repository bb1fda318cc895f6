"""A summary of an experiment: the network, and what a step costs in computation and memory."""

import math
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fpdm.config import ExperimentConfig, OptimConfig
from fpdm.cost import ForwardCost
from fpdm.data.latents import LatentStore, check_std
from fpdm.models import Denoiser, forward_cost
from fpdm.training.ema import average_names
from fpdm.training.optimizers import parameter_groups
from fpdm.training.setup import split_batch
from fpdm.training.sjfb import SJFBConfig, draw_exits, largest_iterations, limited, mean_depth, mean_iterations
from fpdm.training.step_memory import StepMemory, step_memory

GIB = 2**30
COUNTED_UPDATES = 24  # beyond these, each update with gradient adds as much as the one before


class Phase(NamedTuple):
    """One step: n updates without gradient, m with; for a DiT, its blocks in use (None for all)."""

    name: str
    n: float = 0
    m: float = 0
    depth: float | None = None


class FileSizes(NamedTuple):
    """Bytes of a checkpoint's parts, without a learned weighting, and of all snapshots of one step."""

    weights: int
    averages: int
    optimizer: int
    snapshots: int


def first_screen(
    config: ExperimentConfig,
    network: Denoiser,
    cost: ForwardCost,
    store: LatentStore,
    run: Path,
    start: int,
    memory: str | None,
) -> str:
    """Model, data, cost and memory (`describe_memory`, if it was counted) of a run that begins at step `start`."""
    steps, manifest = config.optim.steps, store.manifest
    resumed = f", resumed at step {start} of {steps}" if start else ""
    attributes = f"{len(manifest.attribute_names)} attribute(s), " if manifest.attribute_names else ""
    lines = [
        f"{config.model.name} -> {run}{resumed}{': nothing left to do' if start >= steps else ''}",
        model_table(network),
        f"  data          {manifest.count:,d} latents {tuple(manifest.shape)}, {len(manifest.class_names)} class(es), "
        f"{attributes}{manifest.flips} flip(s), from {store.folder}",
        describe_cost(config, network, cost),
        memory,
        check_std(manifest),
    ]
    return "\n".join(line for line in lines if line)


def phases(config: SJFBConfig, network: Denoiser) -> list[Phase]:
    """The average step and the largest step; only one phase if all steps are alike."""
    if not network.iterative:
        if config.grow is None:
            return [Phase("every step")]
        depth = network.explicit_blocks
        mean = Phase("on average", depth=mean_depth(config, depth))
        return [mean, Phase("at most", depth=limited(config, config.grow[-1][0], depth))]
    mean = Phase("on average", *mean_iterations(config))
    if config.variant != "stochastic" and config.grow is None:
        return [mean._replace(name="every step")]
    return [mean, Phase("at most", *largest_iterations(config))]


def describe_cost(config: ExperimentConfig, network: Denoiser, cost: ForwardCost) -> str:
    """Block passes and FLOPs of a step."""
    lines = []
    for name, n, m, depth in phases(config.sjfb, network):
        used = cost if depth is None else cost_of_depth(network, depth)
        passes, kept = used.blocks(n + m), used.blocks(m)
        flops = config.optim.batch_size * used.training_flops(n, m)
        with_gradient = f", {kept:.4g} of them with gradient" if n else ""
        lines.append(
            f"{passes:.4g} block passes forward per image{with_gradient}; {flops / 1e12:.3g} TFLOPs per step {name}"
        )
    return labelled("step", lines)


def cost_of_depth(network: Denoiser, depth: float) -> ForwardCost:
    """Cost of a call of a DiT with so many of its blocks in use: between those of whole numbers if it is a mean."""
    low, high = (forward_cost(network, whole) for whole in (math.floor(depth), math.ceil(depth)))
    flops = low.explicit_flops + (depth - math.floor(depth)) * (high.explicit_flops - low.explicit_flops)
    return high._replace(explicit_blocks=depth, explicit_flops=flops)


def describe_memory(config: ExperimentConfig, network: Denoiser, processes: int) -> str:
    """Expected memory of each of `processes` processes."""
    rows, micro_batch = split_batch(config.optim, 0, processes)
    gradients_stay = processes > 1 or micro_batch < rows.stop
    lines = []
    for phase in phases(config.sjfb, network):
        name, memory = phase.name, expected_memory(config, network, micro_batch, gradients_stay, phase)
        *parts, (_, peak) = memory._asdict().items()
        listed = ", ".join(f"{part} {value / GIB:.2f}" for part, value in parts)
        lines.append(f"{peak / GIB:.2f} GiB {name}, {micro_batch} samples at a time ({listed})")
    return labelled("memory", lines)


def file_sizes(optim: OptimConfig, network: Denoiser) -> FileSizes:
    """What a run writes: the numbers alone, without a few KiB of names and counters in each file."""
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    snapshots = len(optim.ema_profiles) if optim.ema_snapshot_every else 0
    return FileSizes(weights, len(average_names(optim)) * weights, optimizer_bytes(optim, network), snapshots * weights)


def describe_files(config: ExperimentConfig, network: Denoiser) -> str:
    """The size of a checkpoint and of the snapshots."""
    optim, sizes = config.optim, file_sizes(config.optim, network)
    *parts, (_, snapshots) = sizes._asdict().items()
    listed = ", ".join(f"{part} {value / GIB:.2f}" for part, value in parts)
    lines = [f"{sum(value for _, value in parts) / GIB:.2f} GiB each ({listed})"]
    if snapshots:
        count = math.ceil(optim.steps / optim.ema_snapshot_every)
        lines.append(
            f"snapshots every {optim.ema_snapshot_every:,d} steps, {snapshots / GIB:.2f} GiB each time, "
            f"{count * snapshots / GIB:.2f} GiB in the end"
        )
    return labelled("checkpoint", lines)


def optimizer_bytes(optim: OptimConfig, network: Denoiser) -> int:
    """Bytes of the optimizer's state."""
    return sum(group.state_bytes for group in parameter_groups(optim, network))


def describe_share(config: ExperimentConfig, processes: int) -> str:
    """What the memory estimate covers and, for one process, how to get it for several."""
    rows, micro_batch = split_batch(config.optim, 0, processes)
    batch = config.optim.batch_size
    lines = [
        "This counts the operations only; the allocator and the libraries need more.",
        f"This is one of {processes} processes. Each takes {rows.stop} of the {batch} samples of a step, "
        f"{micro_batch} at a time.",
    ]
    if processes == 1:
        lines[1] = f"There is 1 process. It takes all {batch} samples of a step, {micro_batch} at a time."
        lines.append("For 8 processes, start the dry run with torchrun --nproc_per_node=8.")
    return labelled("", lines)


def expected_memory(
    config: ExperimentConfig,
    network: Denoiser,
    micro_batch: int,
    gradients_stay: bool,
    phase: Phase,
) -> StepMemory:
    """Memory of a step in one process; averages are rounded up. Counting takes seconds for any n and m.

    Includes what earlier iterates keep that are trained too. Not included: the adjoint equation's products and the
    Jacobian penalty's second derivatives.
    """
    half, recompute, sjfb = config.run.mixed_precision != "no", config.run.gradient_checkpointing, config.sjfb
    lasting = {"optimizer": optimizer_bytes(config.optim, network), "averages": len(average_names(config.optim))}
    m, n = math.ceil(phase.m), min(math.ceil(phase.n), 1)  # updates without gradient keep nothing: one is enough
    depth = None if phase.depth is None else math.ceil(phase.depth)

    def count(updates: int) -> StepMemory:
        first = n if network.iterative else 0
        length = updates if network.iterative else depth or network.explicit_blocks
        found = draw_exits(sjfb, network, network.early_head, first, length, 0.0, config.run.seed, 0)
        forward = {"iterations": updates, "iterations_no_grad": n} if updates else {}
        forward |= {"exits": tuple(one.number for one in found)} if found else {}
        forward |= {} if depth is None else {"depth": depth}
        return step_memory(network, micro_batch, half, recompute, gradients_stay, **lasting, **forward)

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
