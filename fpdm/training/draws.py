"""The random numbers of one training step: functions of (seed, step) over the global batch, so 1 and 8 ranks use the
same numbers. Each rank draws what is small, or always needed, for the whole batch, and takes its rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.processes import Process
from fpdm.processes.draws import draw_timesteps
from fpdm.seeding import key


class Draws(NamedTuple):
    """Rows of one rank. t (B,) timesteps; noise, latent_noise (B, C, h, w); drop_labels (B,) bool, which
    conditions are dropped.

    Only where they are needed: start (B, N, D) normal numbers, from which a solve starts; gap (B,) uniform numbers, for
    the distance to a cleaner timestep; jacobian (B, N, width of the state) normal numbers.
    """

    t: Tensor
    noise: Tensor
    latent_noise: Tensor
    drop_labels: Tensor
    start: Tensor | None = None
    gap: Tensor | None = None
    jacobian: Tensor | None = None

    def rows(self, part: slice) -> "Draws":
        """Some of the rows."""
        return Draws(*(None if values is None else values[part] for values in self))


def draw_step(
    seed: int,
    step: int,
    batch_size: int,
    rows: slice,
    shape: tuple[int, ...],
    process: Process,
    class_dropout: float,
    device: torch.device,
) -> Draws:
    """Draws of `rows` out of a global batch of `batch_size` latents of `shape` (C, h, w)."""
    generator = torch.Generator(device).manual_seed(key("step", seed, step))
    on = {"generator": generator, "device": device}
    t = draw_timesteps(process, batch_size, **on)
    drop = torch.rand(batch_size, **on) < class_dropout
    noise = torch.randn(batch_size, *shape, **on)
    latent_noise = torch.randn(batch_size, *shape, **on)
    return Draws(t[rows], noise[rows], latent_noise[rows], drop[rows])


def draw_normal(kind: str, seed: int, step: int, rows: slice, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers (B, *shape) of `rows`; kind: what they are for, each with numbers of its own.

    Every row has a generator of its own: these numbers are as large as the tokens, too large for a global batch.
    """
    generator = torch.Generator(device)
    drawn = torch.empty(rows.stop - rows.start, *shape, device=device)
    for i, row in enumerate(range(rows.start, rows.stop)):
        generator.manual_seed(key(kind, seed, step, row))
        drawn[i].normal_(generator=generator)
    return drawn


def draw_uniform(kind: str, seed: int, step: int, batch_size: int, rows: slice, device: torch.device) -> Tensor:
    """Uniform numbers (B,) in 0..1 of `rows`."""
    generator = torch.Generator(device).manual_seed(key(kind, seed, step))
    return torch.rand(batch_size, generator=generator, device=device)[rows]


def draw_mirrored(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which images (batch_size,) of the global batch are mirrored."""
    generator = np.random.Generator(np.random.Philox(key("mirror", seed, step)))
    return generator.integers(0, 2, batch_size).astype(bool)
