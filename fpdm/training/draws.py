"""The random numbers of one training step: functions of (seed, step) over the global batch.

Each rank draws for the whole batch and takes its rows, so 1 and 8 ranks use the same numbers.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.seeding import key


class Draws(NamedTuple):
    """Rows of one rank. t (B,) timesteps; noise, latent_noise (B, C, h, h); drop_labels (B,) bool."""

    t: Tensor
    noise: Tensor
    latent_noise: Tensor
    drop_labels: Tensor


def draw_step(
    seed: int,
    step: int,
    batch_size: int,
    rows: slice,
    shape: tuple[int, ...],
    timesteps: int,
    class_dropout: float,
    device: torch.device,
) -> Draws:
    """Draws of `rows` out of a global batch of `batch_size` latents of `shape` (C, h, h)."""
    generator = torch.Generator(device).manual_seed(key("step", seed, step))
    on = {"generator": generator, "device": device}
    t = torch.randint(timesteps, (batch_size,), **on)
    drop = torch.rand(batch_size, **on) < class_dropout
    noise = torch.randn(batch_size, *shape, **on)
    latent_noise = torch.randn(batch_size, *shape, **on)
    return Draws(t[rows], noise[rows], latent_noise[rows], drop[rows])


def draw_mirrored(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which images (batch_size,) of the global batch are mirrored."""
    generator = np.random.Generator(np.random.Philox(key("mirror", seed, step)))
    return generator.integers(0, 2, batch_size).astype(bool)
