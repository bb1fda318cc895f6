"""The training loop, on accelerate: one process or many, CPU or GPU. Reads top to bottom."""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn
from tqdm import tqdm

from fpdm.config import ExperimentConfig
from fpdm.data.latents import LatentBatch, LatentStore
from fpdm.data.order import batch_indices
from fpdm.devices import allow_tf32, check_precision, device_peak_tflops, on_cpu, process_state, skips_by_flag
from fpdm.models import compile_layers, forward_cost, load_weights
from fpdm.processes import make_process
from fpdm.training.checkpoint import (
    load_trainer,
    point_best,
    prune_checkpoints,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from fpdm.training.describe import first_screen
from fpdm.training.draws import draw_mirrored, draw_step
from fpdm.training.ema import make_averages
from fpdm.training.gradients import settle_gradients
from fpdm.training.meter import QUARTERS, Meter, loss_sums, status_line
from fpdm.training.objective import Objective, average_gradients
from fpdm.training.optimizers import learning_rate, make_optimizer, parameter_groups, set_options, set_rates
from fpdm.training.runlog import RunLog, start_tracker
from fpdm.training.setup import (
    build_network,
    check_solves,
    check_store,
    check_tracker,
    flat_settings,
    open_run,
    sampling_facts,
    split_batch,
)
from fpdm.training.signals import StopRequest
from fpdm.training.sjfb import plan_step, work_cost
from fpdm.training.snapshots import save_snapshots
from fpdm.training.start import Init, check_start, take_weights
from fpdm.training.step_loss import Batch, StepLoss, draw_beside, without_gradients
from fpdm.training.validation import HeldOut, Measure, score_of, validation_line
from fpdm.training.watch import Watch


class TrainingDiverged(FloatingPointError):
    """Several non-finite steps in a row; the last checkpoint holds the weights before them."""


def train(
    config: ExperimentConfig,
    resume: str | None = None,
    on_preview: Callable[[Path, int, nn.Module], None] | None = None,
    measure: Measure | None = None,
    fork: str | None = None,
    init: Init | None = None,
) -> Path:
    """Train as `config` says; returns the run's folder.

    resume: `latest` (the newest run of this name), `auto` (the same, or a new run if there is
        none), a run's folder or one of its checkpoints.
    on_preview: called on the main process as (run folder, step, EMA model) every
        `run.preview_every` steps.
    measure: called on every process with the EMA model every `run.validate_every` steps, for values besides the loss
        on held-out latents.
    fork: a run's folder or one of its checkpoints, from which a new run starts. It continues the other's log, and may
        differ from it where a resumed run may, as in the length or a cool-down. With resume=auto, only if there is no
        run of this name yet.
    init: weights that the network of a new run starts from, and with it the averages. With resume=auto, only if there
        is no run of this name yet.

    SIGTERM, SIGUSR1 or Ctrl-C stops it early, with a checkpoint, after the current step or the next one. ValueError if
    another program is training this run.
    """
    with ExitStack() as held:
        return _train(config, resume, on_preview, measure, fork, init, held)


def _train(
    config: ExperimentConfig,
    resume: str | None,
    on_preview: Callable[[Path, int, nn.Module], None] | None,
    measure: Measure | None,
    fork: str | None,
    init: Init | None,
    held: ExitStack,
) -> Path:
    """`train`, with what it holds until it ends."""
    optim, seed = config.optim, config.run.seed
    check_start(resume, fork, init and init.source)
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
    device, is_main, ranks = accelerator.device, accelerator.is_main_process, accelerator.num_processes
    allow_tf32(config.run.tf32)
    rows, micro = split_batch(optim, accelerator.process_index, ranks)
    share = rows.stop - rows.start

    store = LatentStore(config.data.latents)
    check_store(config.data, store)
    process = make_process(asdict(config.diffusion))
    set_seed(seed)  # Python, numpy and torch: for the initial weights, and for random numbers in a user's changes
    network = build_network(config, store.manifest.shape, len(store.manifest.class_names), store.manifest)
    check_solves(config, network, micro)
    implicit, cost_at = network.iterative, cache(partial(forward_cost, network))  # by the number of a DiT's blocks
    objective = Objective(process)
    taken = take_weights(init, network, config, store.manifest, resume, accelerator)
    set_seed(seed, device_specific=True)
    network.to(device)
    objective.to(device)
    averages = make_averages(optim, network)
    ema = averages["ema"]
    if config.run.compile:
        compile_layers(network)
    trained = [*network.parameters(), *objective.parameters()]
    groups = parameter_groups(optim, network, objective.parameters())
    bare = make_optimizer(optim, groups)
    by_flag = skips_by_flag(device) and optim.optimizer == "adamw"
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "broadcast_buffers is deprecated", FutureWarning
        )  # accelerate still uses this name
        model, optimizer = accelerator.prepare(network, bare)

    if ranks > 1 and micro < share:
        settle_gradients(accelerator, model, store.manifest.shape, network)
    step_loss = StepLoss(config, model, network, process, objective)

    held_out = None if config.validation.latents is None else HeldOut(config, store.manifest, process, accelerator)
    run, checkpoint = open_run(config, store, resume, fork, init and init.source, accelerator, held)
    meter = Meter(device, optim.batch_size, device_peak_tflops(device, config.run.mixed_precision, config.run.tf32))
    start = skipped = skipped_in_a_row = 0
    best = {"step": 0, "score": math.inf}  # of the validations
    if checkpoint is not None:
        trainer = load_trainer(checkpoint)
        load_weights(network, checkpoint / "model")
        for name, average in averages.items():
            load_weights(average.model, checkpoint / name)
        objective.restore(trainer.get("objective", {}), checkpoint)  # older checkpoints have none
        optimizer.load_state_dict(trainer["optimizer"])
        set_options(optimizer, groups, optim)  # from the config, which may have changed
        if accelerator.scaler is not None and trainer["scaler"] is not None:
            accelerator.scaler.load_state_dict(trainer["scaler"])
        start, skipped, skipped_in_a_row = trainer["step"], trainer["skipped"], trainer["skipped_in_a_row"]
        meter.load(trainer["meter"])
        if checkpoint.parent.parent == run:
            best = trainer.get("best", best)  # older checkpoints have none
        restore_random_states(trainer["random"], accelerator.process_index)
        del trainer  # a copy of the optimizer's state, in host memory

    start_tracker(accelerator, config.run.tracker, run, flat_settings(config))
    model.train()
    with (
        StopRequest(is_main) as stop,
        closing(RunLog(run, is_main)) as log,
        tqdm(total=optim.steps, initial=start, desc="train", unit="step", disable=not is_main) as progress,
        ThreadPoolExecutor(1) as reader,
    ):
        if is_main:
            log.say(first_screen(config, network, cost_at(None), store, run, start, ranks))
        if taken is not None:
            log.say(taken)
        watch = Watch(accelerator, skipped, skipped_in_a_row)
        due = False  # whether a checkpoint waits to be written
        upcoming = reader.submit(read_batch, config, store, start, rows, device)
        for step in range(start, optim.steps):
            batch = upcoming.result().to(device)
            upcoming = reader.submit(read_batch, config, store, step + 1, rows, device)
            draws = draw_step(
                seed, step, optim.batch_size, rows, store.manifest.shape,
                process, network.class_dropout, device,
            )  # fmt: skip
            work = plan_step(config.sjfb, network, seed, step, optim.steps)
            draws = draws._replace(**draw_beside(work, config, network, step, rows, device))
            x0, y = resample(batch, draws.latent_noise), batch.condition(network.conditioned_on)
            done = step + 1
            validated = is_due(config.run.validate_every, done, optim.steps)
            logged = is_due(config.run.log_every, done, optim.steps) or validated
            rate = learning_rate(optim, step)
            set_rates(optimizer, groups, rate)

            optimizer.zero_grad(set_to_none=ranks == 1)  # with DDP they must stay in its buckets
            sums, residual, minimised = 0.0, 0.0, 0.0
            for first in range(0, share, micro):
                part = slice(first, first + micro)
                last = first + micro == share
                with nullcontext() if last else accelerator.no_sync(model):
                    found = step_loss(Batch(x0[part], y[part], draws.rows(part)), work, logged)
                    loss = found.minimised.sum() / share
                    accelerator.backward(loss)
                minimised += loss.detach()
                sums += loss_sums(found.losses, process.part(draws.t[part], QUARTERS)) / share
                if found.residual is not None:
                    residual += found.residual.sum() / share
            average_gradients(accelerator, objective)
            norm = accelerator.clip_grad_norm_(trained, optim.clip_norm or math.inf)

            # A non-finite step is skipped on the device, if it can be: the host does not wait for the result.
            finite = torch.isfinite(norm)
            if accelerator.scaler is None and by_flag:
                bare.found_inf = (~finite).float()
            if accelerator.scaler is not None or by_flag or finite:  # a scaler skips by itself
                with without_gradients(step_loss.unused(work)):
                    optimizer.step()
            for average in averages.values():
                average.update(network, step)
            meter.add(sums, norm, finite, *work_cost(work, cost_at(work.depth), config.sjfb, network.early_head))
            watch.post(step, finite, stop.signal is not None)
            progress.update()

            due = due or done % config.run.checkpoint_every == 0 or done == optim.steps
            known = watch.read(now=logged or due)
            if known.asked and not due:
                due, known = True, watch.read(now=True)
            ended_badly = done == optim.steps and known.in_a_row > 0 and accelerator.scaler is None
            if known.longest >= optim.max_skipped or ended_badly:
                what = "the last step" if ended_badly else f"{known.longest} steps in a row, up to step {known.step},"
                raise TrainingDiverged(
                    f"{what} had gradients that are not finite (optim.max_skipped={optim.max_skipped}); the last "
                    f"checkpoint in {run} is from before that. Lower optim.lr or increase optim.warmup"
                )

            # Weights with non-finite gradients are not saved (with a scaler, it was the scale that was too high).
            trusted = known.in_a_row == 0 or accelerator.scaler is not None
            if logged:
                values = meter.finish(accelerator) | {"lr": rate, "skipped": known.skipped}
                if implicit:
                    values |= {"n": work.n, "m": work.m}
                    values |= {"residual": float(accelerator.reduce(residual, "mean"))} if known.in_a_row == 0 else {}
                if step_loss.minimises_more and known.in_a_row == 0:
                    values["objective"] = float(accelerator.reduce(minimised, "mean"))
                if step_loss.adjoint is not None:
                    values |= step_loss.adjoint_facts(accelerator)
                if accelerator.scaler is not None:
                    values["loss_scale"] = accelerator.scaler.get_scale()
                line = status_line(done, optim.steps, values)
                if validated:
                    with meter.paused():
                        found = held_out.loss(ema.model) if held_out is not None else {}
                        found |= measure(ema.model) if measure is not None else {}
                    line, values = f"{line}\n{validation_line(done, found)}", values | found
                    if trusted and score_of(found) < best["score"]:
                        best = {"step": done, "score": score_of(found)}
                        due = due or config.run.keep_best
                log.record(done, values, line)
                accelerator.log(values, step=done)
            if is_due(optim.ema_snapshot_every, done, optim.steps):
                watch.read(now=True)  # so that steps which are still queued count in the rates
                with meter.paused():
                    if is_main:
                        save_snapshots(run, done, averages.values())
                    accelerator.wait_for_everyone()
            if due and trusted:
                due = False
                states, interval = random_states(), meter.state(accelerator)
                with meter.paused():
                    if is_main:
                        trainer = {
                            "step": done,
                            "skipped": known.skipped,
                            "skipped_in_a_row": known.in_a_row,
                            "objective": objective.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                            "meter": interval,
                            "best": best,
                            "random": states,
                        }
                        log.sync()
                        facts = sampling_facts(config, store)
                        weights = {"model": network} | {name: one.model for name, one in averages.items()}
                        written = save_checkpoint(run, done, weights, trainer, facts)
                        if config.run.keep_best and best["step"] == done:
                            point_best(written)
                        prune_checkpoints(run, done, config.run.keep_last, config.run.keep_every)
                    accelerator.wait_for_everyone()
                if known.asked and done < optim.steps:
                    log.say(
                        f"stopped by {stop.signal or 'a signal to another process'} after step {done} of "
                        f"{optim.steps}, checkpoint written; resume with --resume {run}"
                    )
                    break
            if config.run.preview_every and done % config.run.preview_every == 0:
                watch.read(now=True)
                with meter.paused():
                    if is_main and on_preview is not None:
                        on_preview(run, done, ema.model)
                    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return run


def read_batch(
    config: ExperimentConfig, store: LatentStore, step: int, rows: slice, device: torch.device
) -> LatentBatch:
    """This rank's records of one step, on the CPU; in pinned memory if training runs on a GPU."""
    seed, size = config.run.seed, config.optim.batch_size
    indices = batch_indices(seed, step, size, len(store))[rows]
    mirrored = draw_mirrored(seed, step, size)[rows] if config.data.mirror else np.zeros(len(indices), bool)
    batch = store.read(indices, mirrored)
    return batch.pin_memory() if device.type == "cuda" else batch


def resample(batch: LatentBatch, noise: Tensor) -> Tensor:
    """A fresh sample (B, C, h, w) float32 of each latent, mean + std * noise, on their device."""
    mean, std = batch.moments()
    return mean if std is None else mean + std * noise


def is_due(every: int, done: int, steps: int) -> bool:
    """Whether something is due after step `done` that happens every so many steps (0: never) and after the last."""
    return every > 0 and (done % every == 0 or done == steps)
