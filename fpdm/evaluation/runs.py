"""Training curves: read the log.jsonl of one or several runs and plot them in one picture."""

import itertools
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator

from fpdm.files import write_figure
from fpdm.records import fits, read_lines, read_sections

LOG = "log.jsonl"
X_AXES = ("steps", "images", "hours")
COLOURS = colormaps["tab10"].colors
STYLES = ("-", "--", "-.", ":")
RAW_ALPHA = 0.25  # opacity of the logged values behind their running mean
SMOOTHED_SHARE = 1 / 40  # share of a run's lines that the running mean averages over
WIDE = 10  # a panel may be logarithmic if largest / smallest value exceeds this
MANY = 1000  # beyond this ratio only powers of ten are labelled


class Run(NamedTuple):
    """One run's log: each column as long as `steps`, NaN where a line has no finite value for it."""

    name: str
    folder: Path
    steps: np.ndarray
    columns: dict[str, np.ndarray]


class Panel(NamedTuple):
    """One pair of axes: columns of the log and their names in the legend (a single column needs none)."""

    title: str
    columns: dict[str, str]
    logarithmic: bool = False  # if the values spread widely
    from_zero: bool = False
    noisy: bool = True  # a running mean is shown over the values
    sparse: bool = False  # only some lines of the log have values: they are points, joined by lines


PANELS = (
    Panel("loss", {"loss": ""}, logarithmic=True),
    Panel("parts of the loss", {"mse": "squared error", "vb": "variational bound"}, logarithmic=True),
    Panel(
        "loss by quarter of the timesteps",
        {"loss_t1": "least noise", "loss_t2": "second", "loss_t3": "third", "loss_t4": "most noise"},
        logarithmic=True,
    ),
    Panel("held-out loss", {"val_loss": ""}, logarithmic=True, noisy=False, sparse=True),
    Panel(
        "held-out loss by quarter of the timesteps",
        {"val_loss_t1": "least noise", "val_loss_t2": "second", "val_loss_t3": "third", "val_loss_t4": "most noise"},
        logarithmic=True,
        noisy=False,
        sparse=True,
    ),
    Panel("Fréchet distance of samples", {"val_fd": ""}, logarithmic=True, noisy=False, sparse=True),
    Panel("gradient norm", {"grad_norm": "mean", "grad_norm_max": "largest"}, logarithmic=True),
    Panel("residual at the last update", {"residual": ""}, logarithmic=True),
    Panel("learning rate", {"lr": ""}, from_zero=True, noisy=False),
    Panel("images per second", {"images_per_s": ""}, from_zero=True),
    Panel("TFLOP/s", {"tflops": ""}, from_zero=True),
    Panel("peak memory, GiB", {"peak_memory_gib": ""}, from_zero=True, noisy=False),
)


def read_runs(paths: list[str]) -> list[Run]:
    """The logs at `paths`; each is named after its folder, with the parent folder if names are equal."""
    runs = [read_run(path) for path in paths]
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"runs={','.join(map(str, paths))}: one run is given twice; leave one out")
    names = [folder.name for folder in folders]
    return [
        run._replace(name=name if names.count(name) == 1 else "/".join(folder.parts[-2:]))
        for run, folder, name in zip(runs, folders, names, strict=True)
    ]


def read_run(path: str | Path) -> Run:
    """One run, given by its folder or by its log.jsonl."""
    log = Path(path) / LOG if Path(path).is_dir() else Path(path)
    if not log.is_file():
        raise ValueError(f"run {path}: {log} does not exist; give a run's folder, or a {LOG}")
    rows = read_lines(log, {"step": int})
    if not rows:
        raise ValueError(f"run {path}: no line of a training step in {log}; has it logged yet?")
    names = {name for row in rows for name in row} - {"step"}
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in sorted(names)}
    return Run(log.resolve().parent.name, log.parent, np.array([row["step"] for row in rows]), columns)


def _number(value: object) -> float:
    return float(value) if fits(value, float) else math.nan


def positions(run: Run, x: str) -> np.ndarray:
    """Positions of a run's lines on the axis `x`: steps, images, or hours of training.

    Hours are computed from the images and the logged rate of each interval; a line without a rate takes the run's
    median. Time that no rate covers, as between a stop and the resumption, is not included.
    ValueError if the log or the config lacks what `x` needs.
    """
    if x == "steps":
        return run.steps
    images = run.steps * batch_size(run)
    if x == "images":
        return images
    rates = run.columns.get("images_per_s", np.array([]))
    usable = np.isfinite(rates) & (rates > 0)
    if not usable.any():
        raise ValueError(f"run {run.name}: x=hours needs images_per_s, which its log does not have; choose steps")
    rates = np.where(usable, rates, np.median(rates[usable]))
    return np.cumsum(np.diff(images, prepend=0) / rates) / 3600


def batch_size(run: Run) -> int:
    path = run.folder / "config.yaml"
    try:
        return read_sections(path, {"optim": {"batch_size": int}})["optim"]["batch_size"]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"run {run.name}: no optim.batch_size in {path} ({error}), which images need; choose x=steps"
        ) from error


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values around each point; at the ends, of fewer of them."""
    window = max(int(len(values) * SMOOTHED_SHARE), 1)
    finite = np.isfinite(values)
    around = np.ones(2 * (window // 2) + 1)
    start = len(around) // 2
    inner = slice(start, start + len(values))
    sums = np.convolve(np.where(finite, values, 0), around)[inner]
    counts = np.convolve(finite.astype(float), around)[inner]
    return np.where(finite, sums / np.maximum(counts, 1), math.nan)


def draw_panel(axes: Axes, panel: Panel, runs: list[Run], x: str) -> None:
    """One colour per run, one line style per column; logged values are light, with their running mean on top."""
    logged = [column for column in panel.columns if any(column in columns_of(run, panel) for run in runs)]
    styles = dict(zip(logged, itertools.cycle(STYLES), strict=False))
    low, high = math.inf, -math.inf
    for run, colour in zip(runs, COLOURS, strict=False):
        where = positions(run, x)
        for column in columns_of(run, panel):
            values = run.columns[column]
            low, high = min(low, np.nanmin(values)), max(high, np.nanmax(values))
            shown = np.isfinite(values) if panel.sparse else slice(None)
            if panel.noisy:
                axes.plot(where, values, color=colour, alpha=RAW_ALPHA, linewidth=0.8, zorder=2)
                values = running_mean(values)
            marker = "." if panel.sparse or np.isfinite(values).sum() == 1 else ""
            axes.plot(where[shown], values[shown], color=colour, linestyle=styles[column], linewidth=1.4, marker=marker,
                      zorder=3)  # fmt: skip
    if panel.logarithmic and low > 0 and high > WIDE * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MANY * low else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-2, 5))
        axes.set_ylim(bottom=0 if panel.from_zero else None)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("hours of training" if x == "hours" else x)
    if x != "hours":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if len(panel.columns) > 1:
        handles = [Line2D([], [], color="0.3", linestyle=styles[c], label=panel.columns[c]) for c in logged]
        axes.legend(handles=handles, fontsize=8)


def has(run: Run, column: str) -> bool:
    return column in run.columns and bool(np.isfinite(run.columns[column]).any())


def with_iterations(panel: Panel, runs: list[Run]) -> Panel:
    """The panel with a line for each number of iterations at which an FPDM was validated, as in val_fd_2it."""
    (first, *_) = panel.columns
    names = {name for run in runs for name in run.columns}
    counts = sorted(int(match[1]) for name in names if (match := re.fullmatch(rf"{first}_(\d+)it", name)))
    each = {f"{first}_{k}it": f"{k} iteration{'s' if k > 1 else ''}" for k in counts}
    return panel._replace(columns={first: "explicit model"} | each) if each else panel


def columns_of(run: Run, panel: Panel) -> list[str]:
    """What the run has of a panel; val_fd, the lowest of val_fd_1it, val_fd_2it, ..., is not shown beside them."""
    found = [column for column in panel.columns if has(run, column)]
    return [name for name in found if not any(re.fullmatch(rf"{name}_\d+it", other) for other in found)]


def plot_runs(runs: list[Run], x: str, path: Path) -> None:
    """Write the picture, with a panel for everything that at least one run has logged."""
    if len(runs) > len(COLOURS):
        raise ValueError(f"{len(runs)} runs: at most {len(COLOURS)} in a picture, one colour each")
    panels = [with_iterations(panel, runs) for panel in PANELS]
    panels = [panel for panel in panels if any(has(run, column) for run in runs for column in panel.columns)]
    if not panels:
        raise ValueError(f"{', '.join(run.name for run in runs)}: nothing logged that can be plotted")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.0 * rows + 0.4), layout="constrained")
    shared = None
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number, sharex=shared)
        draw_panel(axes, panel, runs, x)
        shared = axes
    lines = [Line2D([], [], color=colour, label=run.name) for run, colour in zip(runs, COLOURS, strict=False)]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(runs), columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(path, figure)
