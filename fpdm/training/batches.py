"""The batch of a step: latents, read while the step before runs, and random numbers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fpdm.config import ExperimentConfig
from fpdm.data.latents import LatentBatch, LatentStore
from fpdm.data.order import batch_indices
from fpdm.training.draws import draw_mirrored, draw_step
from fpdm.training.parts import Parts
from fpdm.training.sjfb import Work
from fpdm.training.step_loss import Batch, draw_beside


def read_ahead(parts: Parts, start: int) -> Iterator[tuple[int, LatentBatch]]:
    """Each step from `start` to the last, and this rank's records of it, on the device."""
    config, store, rows, device = parts.config, parts.store, parts.rows, parts.accelerator.device
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(read_batch, config, store, start, rows, device)
        for step in range(start, config.optim.steps):
            batch = upcoming.result().to(device)
            upcoming = reader.submit(read_batch, config, store, step + 1, rows, device)
            yield step, batch


def read_batch(
    config: ExperimentConfig, store: LatentStore, step: int, rows: slice, device: torch.device
) -> LatentBatch:
    """This rank's records of one step, on the CPU; in pinned memory if training runs on a GPU."""
    seed, size = config.run.seed, config.optim.batch_size
    indices = batch_indices(seed, step, size, len(store))[rows]
    mirrored = draw_mirrored(seed, step, size)[rows] if config.data.mirror else np.zeros(len(indices), bool)
    batch = store.read(indices, mirrored)
    return batch.pin_memory() if device.type == "cuda" else batch


def draw_batch(parts: Parts, latents: LatentBatch, work: Work, step: int) -> Batch:
    """The batch of one step: its records on the device, `latents`, with this rank's random numbers."""
    config, network, rows, device = parts.config, parts.learner.network, parts.rows, parts.accelerator.device
    draws = draw_step(
        config.run.seed, step, config.optim.batch_size, rows, parts.store.manifest.shape,
        parts.process, network.class_dropout, device,
    )  # fmt: skip
    draws = draws._replace(**draw_beside(work, config, network, step, rows, device))
    return Batch(resample(latents, draws.latent_noise), latents.condition(network.conditioned_on), draws)


def resample(latents: LatentBatch, noise: Tensor) -> Tensor:
    """A fresh sample (B, C, h, w) float32 of each latent, mean + std * noise, on their device."""
    mean, std = latents.moments()
    return mean if std is None else mean + std * noise
