"""Figures: plots of scores over how a budget was spent, and labelled rows of images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

FPDM_COLOURS = ("#1b6ca8", "#e07a1f")
DIT_COLOUR = "#444444"


class Curve(NamedTuple):
    """Scores over iterations per timestep at a fixed budget."""

    label: str
    iterations: list[int]
    scores: list[float]


def plot_smoothing(
    curves: list[Curve], baseline: tuple[str, float], floor: float, score: str, title: str, path: Path
) -> None:
    """The paper's Fig. 4 and 6a in one: score over iterations per timestep, baseline dashed, noise floor dotted."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (label, iterations, scores), colour in zip(curves, FPDM_COLOURS, strict=False):
        axes.plot(iterations, scores, marker="o", color=colour, label=label)
    axes.axhline(baseline[1], linestyle="--", color=DIT_COLOUR, label=baseline[0])
    axes.axhline(floor, linestyle=":", color=DIT_COLOUR, label="noise floor (halves of the real digits)")
    ticks = sorted({k for curve in curves for k in curve.iterations})
    axes.set(xlabel="iterations per timestep (fewer = more timesteps)", ylabel=f"{score}, lower is better", title=title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    values = [s for curve in curves for s in curve.scores] + [baseline[1], floor]
    marks = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(values) * 0.8 <= v <= max(values) * 1.25]
    axes.set_yticks(marks, [str(v) for v in marks])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_grids(rows: list[tuple[str, Tensor]], columns: int, path: Path) -> None:
    """Labelled strips of images, uint8 (B, 3, R, R) each, one under the other."""
    figure = Figure(figsize=(9, 0.35 + sum(_height(images, columns) for _, images in rows)), layout="constrained")
    axes = figure.subplots(
        len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": [_height(images, columns) for _, images in rows]}
    )
    for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
        picture = make_grid(images, nrow=columns, padding=2, pad_value=255)
        axis.imshow(np.asarray(picture.permute(1, 2, 0)), interpolation="nearest")
        axis.set_title(label, fontsize=10, loc="left")
        axis.set_axis_off()
    figure.savefig(path, dpi=150)


def _height(images: Tensor, columns: int) -> float:
    """Inches that a strip and its title take."""
    return 0.3 + 9 / columns * -(-len(images) // columns)
