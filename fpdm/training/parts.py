"""The parts of a run: all that is built before its folder is opened, and that stays the same from step to step."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn

from fpdm.config import ExperimentConfig
from fpdm.cost import ForwardCost
from fpdm.data.latents import LatentStore
from fpdm.devices import allow_tf32, check_precision, on_cpu, process_state
from fpdm.models import forward_cost
from fpdm.processes import Process, make_process
from fpdm.training.gradients import settle_gradients
from fpdm.training.learner import Learner
from fpdm.training.objective import Objective
from fpdm.training.setup import build_network, check_solves, check_store, check_tracker, split_batch
from fpdm.training.start import Init, take_weights
from fpdm.training.step_loss import StepLoss
from fpdm.training.validation import HeldOut, Measure

Preview = Callable[[Path, int, nn.Module], None]


class Parts(NamedTuple):
    """What a run trains with.

    rows: this rank's rows of the global batch; micro: how many of them it takes at a time. cost_at: cost of a model
    call with so many of a DiT's blocks, None for all. taken: what to say of the weights that the run starts from.
    measure, on_preview: as in `fpdm.training.loop.train`.
    """

    config: ExperimentConfig
    accelerator: Accelerator
    store: LatentStore
    process: Process
    learner: Learner
    step_loss: StepLoss
    rows: slice
    micro: int
    cost_at: Callable[[int | None], ForwardCost]
    taken: str | None
    held_out: HeldOut | None
    measure: Measure | None
    on_preview: Preview | None


def make_parts(
    config: ExperimentConfig, resume: str | None, init: Init | None, measure: Measure | None, on_preview: Preview | None
) -> Parts:
    """Build everything; the arguments are those of `train`. ValueError or FileNotFoundError for settings, data or
    weights that do not fit."""
    accelerator, seed = make_accelerator(config), config.run.seed
    rows, micro = split_batch(config.optim, accelerator.process_index, accelerator.num_processes)
    store = LatentStore(config.data.latents)
    check_store(config.data, store)
    manifest = store.manifest
    process = make_process(asdict(config.diffusion))
    set_seed(seed)  # Python, numpy and torch: for the initial weights, and for random numbers in a user's changes
    network = build_network(config, manifest.shape, len(manifest.class_names), manifest)
    check_solves(config, network, micro)
    objective = Objective(process)
    taken = take_weights(init, network, config, manifest, resume, accelerator)
    set_seed(seed, device_specific=True)
    learner = Learner(config, network, objective, accelerator)
    if accelerator.num_processes > 1 and micro < rows.stop - rows.start:
        settle_gradients(accelerator, learner.model, manifest.shape, network)
    step_loss = StepLoss(config, learner.model, network, process, objective)
    held_out = None if config.validation.latents is None else HeldOut(config, manifest, process, accelerator)
    cost_at = cache(partial(forward_cost, network))
    return Parts(
        config, accelerator, store, process, learner, step_loss, rows, micro, cost_at, taken, held_out, measure,
        on_preview,
    )  # fmt: skip


def make_accelerator(config: ExperimentConfig) -> Accelerator:
    """Device, processes and precision of a run; ValueError for a precision or a tracker that is not there."""
    check_precision("run.mixed_precision", config.run.mixed_precision, process_state().device)
    check_tracker(config.run.tracker)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=config.run.mixed_precision,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.results,
        kwargs_handlers=[  # the positions never change; gradients live in DDP's buckets, without a copy
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )
    allow_tf32(config.run.tf32)
    return accelerator
