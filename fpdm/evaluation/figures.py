"""Figures: scores against iterations, budgets and other quantities, labelled strips of images, and shares of time."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from matplotlib.transforms import Bbox
from torch import Tensor
from torchvision.utils import make_grid

from fpdm.files import write_figure

FPDM_COLOURS = ("#1b6ca8", "#e07a1f", "#2a8f4f")
DIT_COLOUR = "#444444"
SIDES = ((1, 0, "left"), (-1, 0, "right"), (0.7, 0.7, "left"), (0.7, -0.7, "left"), (-0.7, 0.7, "right"),
         (-0.7, -0.7, "right"))  # fmt: skip


class Curve(NamedTuple):
    """Scores at some iterations per timestep (or another quantity x, such as the budget). deviations: over seeds."""

    label: str
    x: list[float]
    scores: list[float]
    deviations: list[float] | None = None


class Smoothing(NamedTuple):
    """Data of the paper's Fig. 4 and 6a: FPDM's curves, scores of the baseline and of held-out images, and names."""

    curves: list[Curve]
    baseline: float
    held_out: float
    held_out_name: str
    score: str
    title: str


def draw_smoothing(axes: Axes, data: Smoothing) -> None:
    """Score over iterations per timestep; the baseline dashed, held-out images dotted."""
    for curve, colour in zip(data.curves, FPDM_COLOURS, strict=False):
        axes.errorbar(curve.x, curve.scores, curve.deviations, marker="o", capsize=3, color=colour,
                      label=curve.label)  # fmt: skip
    axes.axhline(data.baseline, linestyle="--", color=DIT_COLOUR, label="DiT")
    axes.axhline(data.held_out, linestyle=":", color=DIT_COLOUR, label=data.held_out_name)
    axes.set(
        xlabel="iterations per timestep (fewer iterations = more timesteps)",
        ylabel=f"{data.score} (lower is better)",
        title=data.title,
        xscale="log",
        ylim=(0, None),
    )
    ticks = sorted({k for curve in data.curves for k in curve.x})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def plot_smoothing(data: Smoothing, path: Path) -> None:
    """Write the figure of `draw_smoothing` to a file."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw_smoothing(figure.add_subplot(), data)
    write_figure(path, figure)


def plot_curves(curves: list[Curve], xlabel: str, score: str, path: Path) -> None:
    """Scores over a quantity that doubles, such as budgets."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
    for curve, shade in zip(curves, shades, strict=True):
        axes.errorbar(curve.x, curve.scores, curve.deviations, marker="o", capsize=3, color=shade,
                      label=curve.label)  # fmt: skip
    ticks = sorted({x for curve in curves for x in curve.x})
    axes.set(xlabel=xlabel, ylabel=f"{score} (lower is better)", xscale="log", ylim=(0, None))
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def plot_panels(panels: dict[str, list[Curve]], xlabel: str, score: str, path: Path) -> None:
    """Scores over a quantity that doubles, on logarithmic axes; a panel for each title."""
    figure = Figure(figsize=(4.4 * len(panels), 4.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
        for curve, shade in zip(curves, shades, strict=True):
            axes.errorbar(curve.x, curve.scores, curve.deviations, marker="o", capsize=3, color=shade,
                          label=curve.label)  # fmt: skip
        ticks = sorted({x for curve in curves for x in curve.x})
        axes.set(title=title, xlabel=xlabel, xscale="log", yscale="log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"{score} (lower is better)")
    figure.axes[0].legend()
    write_figure(path, figure)


def plot_losses(panels: dict[str, list[Curve]], xlabel: str, loss: str, path: Path) -> None:
    """Losses over training, each in a band of its deviation; a panel with a legend for each title."""
    figure = Figure(figsize=(4.4 * len(panels), 4.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
        for curve, shade in zip(curves, shades, strict=True):
            scores, deviations = np.array(curve.scores), np.array(curve.deviations)
            axes.plot(curve.x, scores, color=shade, label=curve.label)
            axes.fill_between(curve.x, scores - deviations, scores + deviations, color=shade, alpha=0.25, linewidth=0)
        axes.set(title=title, xlabel=xlabel, xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel(f"{loss} (lower is better)")
    write_figure(path, figure)


class Point(NamedTuple):
    """A score at x, with its deviation over seeds. explicit: the model is a DiT."""

    label: str
    x: float
    score: float
    deviation: float
    explicit: bool


def plot_points(points: list[Point], xlabel: str, score: str, path: Path) -> None:
    """Scores over any quantity, each with its label."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for family, explicit, colour in (("FPDM", False, FPDM_COLOURS[0]), ("DiT", True, DIT_COLOUR)):
        of_it = [point for point in points if point.explicit == explicit]
        axes.errorbar([p.x for p in of_it], [p.score for p in of_it], [p.deviation for p in of_it], fmt="o", capsize=3,
                      color=colour, label=family)  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=f"{score} (lower is better)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend()
    _label(axes, points)
    write_figure(path, figure)


def _label(axes: Axes, points: list[Point]) -> None:
    """Write each label beside its point, at the nearest place that covers no other label and no point."""
    figure = axes.figure
    figure.draw_without_rendering()  # the layout must be known
    dots = axes.transData.transform([(point.x, point.score) for point in points])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    places = [(dx * distance, dy * distance, side) for distance in range(6, 80, 3) for dx, dy, side in SIDES]
    for point in sorted(points, key=lambda point: point.score):
        label = axes.annotate(point.label, (point.x, point.score), xytext=(0, 0), textcoords="offset points",
                              fontsize=7, va="center")  # fmt: skip
        for dx, dy, side in places:
            label.set(position=(dx, dy), ha=side)
            box = label.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                break
        taken.append(box)


class Series(NamedTuple):
    """Scores y over x of one network. explicit: a DiT."""

    label: str
    x: list[float]
    y: list[float]
    explicit: bool


def plot_series(series: list[Series], xlabel: str, score: str, path: Path) -> None:
    """Scores over any quantity, both logarithmic: DiTs grey to black and dashed, FPDMs in colour."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for explicit, colours, style in ((True, "Greys", "--"), (False, "plasma", "-")):
        of_it = [one for one in series if one.explicit == explicit]
        for i, one in enumerate(of_it):
            colour = matplotlib.colormaps[colours](0.9 - 0.55 * i / max(len(of_it) - 1, 1))
            axes.plot(one.x, one.y, style, marker="o", markersize=3.5, color=colour, label=one.label)
    axes.set(xlabel=xlabel, ylabel=f"{score} (lower is better)", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_figure(path, figure)


def draw_strip(axes: Axes, label: str, images: Tensor, columns: int) -> None:
    """uint8 images (B, 3, R, R) in rows of `columns` under a label."""
    picture = make_grid(images, nrow=columns, padding=2, pad_value=255)
    axes.imshow(np.asarray(picture.permute(1, 2, 0)), interpolation="nearest")
    axes.set_title(label, fontsize=10, loc="left")
    axes.set_axis_off()


def plot_strips(strips: list[tuple[str, Tensor]], columns: int, path: Path) -> None:
    """Labelled strips of images, one below the other."""
    rows = [-(-len(images) // columns) for _, images in strips]
    figure = Figure(figsize=(10, sum(0.35 + 0.55 * count for count in rows)), layout="constrained")
    grid = figure.add_gridspec(len(strips), 1, height_ratios=rows)
    for row, (label, images) in enumerate(strips):
        draw_strip(figure.add_subplot(grid[row, 0]), label, images, columns)
    write_figure(path, figure)


def plot_overview(strips: list[tuple[str, Tensor]], columns: int, data: Smoothing, path: Path) -> None:
    """Strips of images on the left, the curve on the right."""
    figure = Figure(figsize=(14, 0.5 + 1.05 * len(strips)), layout="constrained")
    grid = figure.add_gridspec(len(strips), 2, width_ratios=(1.45, 1))
    for row, (label, images) in enumerate(strips):
        draw_strip(figure.add_subplot(grid[row, 0]), label, images, columns)
    draw_smoothing(figure.add_subplot(grid[:, 1]), data)
    write_figure(path, figure)


def plot_shares(rows: dict[str, dict[str, float]], path: Path) -> None:
    """One bar per row, divided into the shares of its parts; parts of the same name have the same colour."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    figure = Figure(figsize=(10, 1.6 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    begun = np.zeros(len(rows))
    for name, colour in zip(names, matplotlib.colormaps["tab20"](np.linspace(0, 1, len(names))), strict=True):
        widths = np.array([parts.get(name, 0.0) for parts in rows.values()])
        axes.barh(list(rows), widths, left=begun, color=colour, label=name)
        begun += widths
    axes.set(xlim=(0, 1), xlabel="share of the time")
    axes.invert_yaxis()
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9, frameon=False)
    write_figure(path, figure)
