"""Processes from image to noise: what training, plans and solvers know of noise. A new one is one more entry of
PROCESSES."""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from fpdm.processes.discrete import Diffusion
from fpdm.processes.draws import TimestepDraw
from fpdm.processes.flow import Flow
from fpdm.processes.level import Level
from fpdm.processes.losses import Losses
from fpdm.processes.times import ContinuousTimes, DiscreteTimes

PROCESSES = {"discrete": Diffusion, "flow": Flow}


class Process(Protocol):
    """What all processes do.

    t: timesteps (B,), int64 in the discrete process and float32 in 0..1 in a continuous one; time runs from image to
    noise. x0, noise, x and the mean of a prediction are (B, C, H, W).
    """

    kind: str  # its name in PROCESSES
    predicts: str  # what the network predicts, in words
    learn_sigma: bool  # whether the network predicts a variance as well
    weighting: str  # name of the loss weighting
    timestep_draw: TimestepDraw  # how training draws timesteps
    clean: Level  # that of the image

    def times(self, shift: float = 1.0) -> DiscreteTimes | ContinuousTimes:
        """The timesteps that sampling can visit."""

    def level(self, t: float) -> Level:
        """The noise level at a timestep."""

    def network_time(self, t: Tensor) -> Tensor:
        """What the network sees of timesteps t (B,)."""

    def uniform(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Uniformly drawn timesteps (count,)."""

    def at_sigma(self, sigma: Tensor) -> Tensor:
        """Timesteps (B,) at which noise / signal is this (B,)."""

    def at_share(self, share: Tensor) -> Tensor:
        """Timesteps (B,) at these shares of the time, 0 to 1."""

    def part(self, t: Tensor, parts: int) -> Tensor:
        """Number (B,) of the part, out of so many equal ones, in which each timestep is."""

    def cleaner(self, t: Tensor, gap: Tensor) -> Tensor:
        """Timesteps (B,) that are nearer to the image by these shares (B,) of the time."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The mean part that the network should predict."""

    def split(self, prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prediction (B, C or 2C, H, W) -> its mean part, and its variance part if there is one."""

    def x0_and_eps(self, mean: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Clean latent and noise that a mean part predicts at x."""

    def mean_of(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """The mean part that predicts x0 at x."""

    def losses(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """Per-sample losses (B,) of a prediction made from add_noise(x0, noise, t)."""

    def distance(self, prediction: Tensor, other: Tensor, t: Tensor) -> Tensor:
        """Distance (B,) between the mean parts of two predictions, weighted as the loss."""


def make_process(settings: dict[str, Any]) -> Process:
    """The process of a config's section `diffusion`, or of a checkpoint's facts; older ones name no process.

    Settings of other processes are left aside. ValueError for a process that does not exist, or for bad settings.
    """
    kind = settings.get("process", "discrete")
    if kind not in PROCESSES:
        raise ValueError(f"process={kind!r}: choose one of {', '.join(PROCESSES)}")
    made = PROCESSES[kind]
    return made(**{name: settings[name] for name in inspect.signature(made).parameters if name in settings})
