"""The training loop, on accelerate: one process or many, CPU or GPU. Reads top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from fpdm.config import ExperimentConfig, OptimConfig
from fpdm.data.codec import Moments
from fpdm.data.latents import LatentStore
from fpdm.data.order import batch_indices
from fpdm.devices import allow_tf32, check_precision, on_cpu, process_state
from fpdm.diffusion import Diffusion
from fpdm.models import FixedPointDiT, count_explicit_blocks, load_weights
from fpdm.training.checkpoint import load_trainer, random_states, restore_random_states, save_checkpoint
from fpdm.training.draws import draw_mirrored, draw_step
from fpdm.training.ema import EMA
from fpdm.training.runlog import RunLog
from fpdm.training.setup import (
    build_network,
    check_mirror,
    check_tracker,
    first_screen,
    open_run,
    sampling_facts,
    split_batch,
)
from fpdm.training.sjfb import draw_iterations


class TrainingDiverged(FloatingPointError):
    """Several non-finite steps in a row; the last checkpoint holds the weights before them."""


def train(
    config: ExperimentConfig,
    resume: str | None = None,
    on_preview: Callable[[Path, int, nn.Module], None] | None = None,
) -> Path:
    """Train as `config` says; returns the run's folder.

    resume: `latest` (the newest run of this name), a run's folder or one of its checkpoints.
    on_preview: called on the main process as (run folder, step, EMA model) every
        `run.preview_every` steps.
    """
    optim, seed = config.optim, config.run.seed
    check_precision("run.mixed_precision", config.run.mixed_precision, process_state().device)
    check_tracker(config.run.tracker)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=config.run.mixed_precision,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.results,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # the positions never change
    )
    device, is_main = accelerator.device, accelerator.is_main_process
    allow_tf32(config.run.tf32)
    rows, micro = split_batch(optim, accelerator.process_index, accelerator.num_processes)
    share = rows.stop - rows.start

    store = LatentStore(config.data.latents)
    check_mirror(config, store)
    diffusion = Diffusion(**asdict(config.diffusion))
    torch.manual_seed(seed)
    network = build_network(config, store.manifest)
    implicit, explicit_blocks = isinstance(network, FixedPointDiT), count_explicit_blocks(network)
    network.to(device)
    ema = EMA(network, optim.ema_decay)
    optimizer = torch.optim.AdamW(network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    model, optimizer = accelerator.prepare(network, optimizer)

    run, checkpoint = open_run(config, store, resume, accelerator)
    start = skipped = skipped_in_a_row = 0
    if checkpoint is not None:
        trainer = load_trainer(checkpoint)
        load_weights(network, checkpoint / "model")
        load_weights(ema.model, checkpoint / "ema")
        optimizer.load_state_dict(trainer["optimizer"])
        set_groups(optimizer, weight_decay=optim.weight_decay)  # the config's, which may have been changed
        if accelerator.scaler is not None and trainer["scaler"] is not None:
            accelerator.scaler.load_state_dict(trainer["scaler"])
        start, skipped, skipped_in_a_row = trainer["step"], trainer["skipped"], trainer["skipped_in_a_row"]
        restore_random_states(trainer["random"], accelerator.process_index)

    if config.run.tracker != "none":
        accelerator.init_trackers(run.name)
    model.train()
    with (
        closing(RunLog(run, is_main)) as log,
        tqdm(total=optim.steps, initial=start, desc="train", unit="step", disable=not is_main) as progress,
        ThreadPoolExecutor(1) as reader,
    ):
        log.say(first_screen(config, network, explicit_blocks, store, run, start))
        interval = Interval(device, optim.batch_size)
        upcoming = reader.submit(read_batch, config, store, start, rows)
        for step in range(start, optim.steps):
            moments, labels = upcoming.result()
            upcoming = reader.submit(read_batch, config, store, step + 1, rows)
            draws = draw_step(
                seed, step, optim.batch_size, rows, store.manifest.shape,
                diffusion.timesteps, network.class_dropout, device,
            )  # fmt: skip
            x0, y = resample(moments, draws.latent_noise), labels.to(device)
            x_t = diffusion.add_noise(x0, draws.noise, draws.t)
            n, m = draw_iterations(config.sjfb, seed, step)
            iterations = {"iterations": m, "iterations_no_grad": n} if implicit else {}
            rate = learning_rate(optim, step)
            set_groups(optimizer, lr=rate)

            optimizer.zero_grad()
            step_losses = torch.zeros(3, device=device)
            for first in range(0, share, micro):
                part = slice(first, first + micro)
                last = first + micro == share
                with nullcontext() if last else accelerator.no_sync(model):
                    output = model(x_t[part], draws.t[part], y[part], drop_labels=draws.drop_labels[part], **iterations)
                    losses = diffusion.losses(output.prediction, x0[part], draws.noise[part], draws.t[part])
                    accelerator.backward(losses.total.sum() / share)
                step_losses += torch.stack([loss.detach().sum() for loss in losses]) / share
            norm = accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm or math.inf)

            # With a scaler a non-finite step is its business: it skips it and lowers the scale.
            finite = bool(torch.isfinite(norm))
            if finite or accelerator.scaler is not None:
                optimizer.step()
            if finite:
                ema.update(network, step)
                interval.add(step_losses, norm, (explicit_blocks + n + m) if implicit else explicit_blocks)
                skipped_in_a_row = 0
            else:
                skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
                at_the_end = step + 1 == optim.steps and accelerator.scaler is None
                if skipped_in_a_row >= optim.max_skipped or at_the_end:
                    raise TrainingDiverged(
                        f"step {step}: gradient norm {float(norm)}, non-finite step number {skipped_in_a_row} in a row "
                        f"(optim.max_skipped={optim.max_skipped}); the last checkpoint in {run} is from before. "
                        "Lower optim.lr, lengthen optim.warmup, or lower optim.clip_norm"
                    )
            progress.update()

            done = step + 1
            if done % config.run.log_every == 0 or done == optim.steps:
                values = interval.finish(accelerator) | {"lr": rate, "skipped": skipped}
                values |= {"n": n, "m": m} if implicit else {}
                log.record(done, values)
                accelerator.log(values, step=done)
            # Weights that give non-finite gradients are not kept (under a scaler it is the scale that was too high).
            trusted = skipped_in_a_row == 0 or accelerator.scaler is not None
            if trusted and (done % config.run.checkpoint_every == 0 or done == optim.steps):
                states = random_states()
                if is_main:
                    trainer = {
                        "step": done,
                        "skipped": skipped,
                        "skipped_in_a_row": skipped_in_a_row,
                        "optimizer": optimizer.state_dict(),
                        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                        "random": states,
                    }
                    save_checkpoint(run, done, network, ema.model, trainer, sampling_facts(config, store.manifest))
                accelerator.wait_for_everyone()
            if on_preview is not None and config.run.preview_every and done % config.run.preview_every == 0:
                with interval.paused():
                    if is_main:
                        on_preview(run, done, ema.model)
                    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run


class Interval:
    """Sums over the finite steps of one logging interval, kept on the device until it ends."""

    def __init__(self, device: torch.device, batch_size: int):
        self.batch_size = batch_size
        self.losses, self.norm = torch.zeros(3, device=device), torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        self.losses.zero_()
        self.norm.zero_()
        self.steps = self.passes = 0
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here, on checkpoints and previews, does not count in the rates."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, losses: Tensor, norm: Tensor, passes: int) -> None:
        """One step: this rank's mean losses (3,), the gradient norm, block passes per image."""
        self.losses += losses
        self.norm += norm
        self.steps, self.passes = self.steps + 1, self.passes + passes

    def finish(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and ranks, and rates over all ranks; starts the next interval."""
        losses = accelerator.reduce(self.losses, "mean").tolist()
        per_second = self.batch_size / (time.perf_counter() - self.started)
        values = {"images_per_s": self.steps * per_second, "block_passes_per_s": self.passes * per_second}
        if self.steps:  # without a finite step there is no loss to speak of
            sums = zip(("loss", "mse", "vb", "grad_norm"), (*losses, float(self.norm)), strict=True)
            values = {name: value / self.steps for name, value in sums} | values
        if accelerator.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.reset()
        return values


def read_batch(config: ExperimentConfig, store: LatentStore, step: int, rows: slice) -> tuple[Moments, Tensor]:
    """This rank's latent moments and labels of one step."""
    seed, size = config.run.seed, config.optim.batch_size
    indices = batch_indices(seed, step, size, len(store))[rows]
    mirrored = draw_mirrored(seed, step, size)[rows] if config.data.mirror else np.zeros(len(indices), bool)
    return store.read(indices, mirrored)


def resample(moments: Moments, noise: Tensor) -> Tensor:
    """A fresh draw (B, C, h, h) from the latent moments, on the device of `noise`."""
    mean = moments.mean.to(noise.device, non_blocking=True)
    return mean if moments.std is None else mean + moments.std.to(noise.device, non_blocking=True) * noise


def set_groups(optimizer: torch.optim.Optimizer, **settings: float) -> None:
    """Set options such as lr in every parameter group."""
    for group in optimizer.param_groups:
        group.update(settings)


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Rate at `step` (0 the first): a function of the step alone, whatever the number of processes."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.lr_schedule == "constant":
        return optim.lr
    done = (step - optim.warmup) / max(optim.steps - optim.warmup, 1)
    return optim.lr * (1 - done if optim.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
