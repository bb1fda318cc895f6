"""Records of a sampling run: the residual of every update and the predicted image at every timestep.

B batch, S timesteps, K the most updates of any timestep, C latent channels, H height and width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.data.batches import to_uint8
from fpdm.data.codec import Codec
from fpdm.files import write_arrays, write_figure
from fpdm.sampling.call import Call
from fpdm.sampling.images import save_grid
from fpdm.sampling.plan import Plan

FILMSTRIP = "filmstrip.png"
RESIDUALS = "residuals.npz"
FRAMES = 12
COLOUR = "#1b6ca8"


class Recorder:
    """An on_step of `run_plan`. It keeps all tensors on the device until `trace` is called."""

    def __init__(self):
        self._residuals: list[Tensor | None] = []
        self._x0: list[Tensor] = []

    def __call__(self, position: int, call: Call) -> None:
        residuals = getattr(call.output, "residuals", None)
        self._residuals.append(None if residuals is None else residuals[: len(call.x0)])  # guidance doubles the batch
        self._x0.append(call.x0)

    def trace(self, plan: Plan) -> "Trace":
        """The record of a run of this plan."""
        residuals = None
        if self._residuals[0] is not None:
            most = max(values.shape[1] for values in self._residuals)
            residuals = np.full((len(self._x0[0]), len(plan.steps), most), np.nan, np.float32)
            for s, values in enumerate(self._residuals):
                residuals[:, s, : values.shape[1]] = values.float().cpu().numpy()
        return Trace(np.array(plan.timesteps), residuals, torch.stack(self._x0))


class Spent:
    """An on_step that sums up where a run-time allocation spends its updates, over any number of batches."""

    def __init__(self, plan: Plan):
        self.images = 0
        self.updates = torch.zeros(len(plan.steps), dtype=torch.float64)

    def __call__(self, position: int, call: Call) -> None:
        self.images += len(call.x0) if position == 0 else 0
        # Guidance doubles the rows; an image's count is the mean of its two rows.
        self.updates[position] += call.updates.cpu().double().mean() * len(call.x0)

    def mean(self) -> list[float]:
        """Mean updates per image in each model call."""
        return (self.updates / self.images).tolist()


class Fallbacks:
    """An on_step that counts how often a step of Anderson acceleration was taken back, over any number of batches."""

    def __init__(self):
        self.solves = 0
        self._fallbacks: Tensor | int = 0

    def __call__(self, position: int, call: Call) -> None:
        self.solves += len(call.output.fallbacks)
        self._fallbacks = self._fallbacks + call.output.fallbacks.sum()  # stays on the device

    @property
    def count(self) -> int:
        return int(self._fallbacks)


class Trace(NamedTuple):
    """timesteps (S,); residuals (B, S, K), NaN where an image had fewer updates, None for a DiT; x0 (S, B, C, H, W),
    the clean latents predicted at each timestep, on the sampling device."""

    timesteps: np.ndarray
    residuals: np.ndarray | None
    x0: Tensor

    def frames(self) -> list[int]:
        """Positions of up to FRAMES timesteps, evenly spaced, including the first and the last."""
        count = len(self.timesteps)
        return sorted({round(i * (count - 1) / max(FRAMES - 1, 1)) for i in range(FRAMES)})


def save_trace(trace: Trace, codec: Codec, folder: Path) -> None:
    """Write residuals.npz (timesteps, residuals) and filmstrip.png: one row per image, timesteps from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    if trace.residuals is not None:
        write_arrays(folder / RESIDUALS, {"timesteps": trace.timesteps, "residuals": trace.residuals})
    frames = trace.frames()
    rows = trace.x0[frames].transpose(0, 1)  # (B, frames, C, H, W)
    images = torch.cat([to_uint8(codec.decode(row)).cpu() for row in rows])
    save_grid(images, folder / FILMSTRIP, columns=len(frames))


def last_residuals(residuals: np.ndarray) -> np.ndarray:
    """Residual of each solve's last update (B, S), from the residuals of all updates (B, S, K), NaN after the last."""
    last = (~np.isnan(residuals)).sum(-1, keepdims=True) - 1
    return np.take_along_axis(residuals, last, -1)[..., 0]


def plot_residuals(timesteps: np.ndarray, residuals: np.ndarray, path: Path) -> None:
    """Plot a sampling run (Fig. 6b, 6c): the last update's residual over timesteps, and all updates of some timesteps.

    timesteps (S,), residuals (B, S, K) with NaN where an image had fewer than K updates.
    """
    import matplotlib  # slow to import, and not needed for sampling
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    last, twice = last_residuals(residuals), len(set(timesteps.tolist())) < len(timesteps)
    # If a solver calls the model twice at a timestep, timesteps cannot be the axis.
    along = np.arange(1, len(timesteps) + 1) if twice else timesteps
    faint = left.plot(along, last.T, color=COLOUR, alpha=0.25, linewidth=1)
    faint[0].set_label("each image")
    left.plot(along, np.median(last, axis=0), color=COLOUR, marker="o", label="median over images")
    xlabel = "model call" if twice else "timestep"
    left.set(xlabel=f"{xlabel}, from noise to image", ylabel="residual of the last update", yscale="log")
    if not twice:
        left.invert_xaxis()
    left.legend()
    shown = sorted({round(i * (len(timesteps) - 1) / 4) for i in range(5)})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    for position, shade in zip(shown, shades, strict=True):
        updates = residuals[:, position]
        median = np.nanmedian(updates[:, ~np.isnan(updates).all(0)], axis=0)  # over the images that had the update
        label = f"call {position + 1}, t = {timesteps[position]}" if twice else f"t = {timesteps[position]}"
        right.plot(np.arange(1, len(median) + 1), median, color=shade, marker="o", label=label)
    right.set(xlabel="update", ylabel="residual, median over images", yscale="log")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_figure(path, figure)
