"""Long runs of tiny models: memory, open files, threads, disk and time per step must stay what they were."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fpdm.soak.children import Children, command, start
from fpdm.soak.material import FPDM, Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.results import run_intact
from fpdm.soak.whole import check

WARM = 0.2  # share of a run after which growth is measured: caches and allocators have filled by then
LOOKS = 200  # at a run
MEBI = 2**20
# The most that a quantity may grow over the rest of a run, beyond three standard errors: a share of its mean, at least
# so much. The log grows by design, by a line now and then, and is not counted to the disk.
GROWTH = {"memory": (0.03, 4 * MEBI), "files": (0.0, 1.0), "threads": (0.0, 1.0), "disk": (0.05, MEBI / 4)}
SLOWER = 1.5  # most that a step of the last third may cost of that of the first, in seconds of CPU, as medians
TICKS = 0.02  # seconds by which a measured interval may be off
LOGS = ("log.jsonl", "log.txt")
SLICE = 1000  # images


class Look(NamedTuple):
    """At a process: share of the run done, resident bytes, open files, threads, seconds of CPU (which do not depend on
    what else the machine does), bytes on the disk."""

    done: float
    memory: float
    files: float
    threads: float
    seconds: float
    disk: float


def training(material: Material, draw: Draws, folder: Path) -> Round:
    """`material.length` steps, with a checkpoint every fiftieth of them and a line of the log every hundredth."""
    steps = material.length
    words = ["train", "--data.latents", material.store, "--run.results", folder / "runs", "--run.name", "run", *FPDM,
             "--optim.batch_size", 2, "--optim.steps", steps, "--run.checkpoint_every", max(steps // 50, 1),
             "--run.keep_last", 2, "--run.log_every", max(steps // 100, 1), "--run.preview_every", 0,
             "--run.seed", draw.randrange(1000)]  # fmt: skip
    log = folder / "runs" / "000-run" / "log.jsonl"

    def done() -> float:
        lines = log.read_bytes().splitlines() if log.exists() else []
        return json.loads(lines[-1])["step"] / steps if lines else 0.0

    looks = _watched(command(words), folder, done)
    check(run_intact, folder)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    latest = os.readlink(log.parent / "checkpoints" / "latest")
    if lines[-1]["step"] != steps or int(latest) != steps or any(not math.isfinite(line["loss"]) for line in lines):
        raise Lost(f"the log ends at {lines[-1]}, latest is {latest}")
    if sorted(line["step"] for line in lines) != [line["step"] for line in lines]:
        raise Lost("the log is out of order")
    return Round("training", "flat", {"steps": steps, **_judged(looks)})


def sampling(material: Material, draw: Draws, folder: Path) -> Round:
    """`material.length` images in slices of a thousand, by one process; a slice is removed when the next is done."""
    images, first = material.length, draw.randrange(1000)
    size, progress = min(SLICE, max(images // 10, 1)), folder / "progress"

    def work() -> None:
        from fpdm.loading import load_source
        from fpdm.sampling.folder import sample_to_folder

        source = load_source(material.run)
        for i in range(images // size):
            sample_to_folder(source, folder / f"slice-{i}", size, steps=2, iterations=1, batch_size=50, seed=first + i)
            shutil.rmtree(folder / f"slice-{i - 1}", ignore_errors=True)
            progress.write_text(str((i + 1) / (images // size)))

    def done() -> float:
        return float(progress.read_text() or 0) if progress.exists() else 0.0

    looks = _watched(work, folder, done)
    found = len(list((folder / f"slice-{images // size - 1}").glob("[0-9]*.png")))
    if found != size:
        raise Lost(f"the last slice has {found} images instead of {size}")
    return Round("sampling", "flat", {"images": images, **_judged(looks)})


def _watched(work: Callable[[], None], folder: Path, done: Callable[[], float]) -> list[Look]:
    """Start the work, and look at it until it has ended; Lost if it fails."""
    children, looks = start(work, folder.with_suffix(".txt")), []
    while not children.look():
        share = done()
        if share and (not looks or share - looks[-1].done >= 1 / LOOKS):
            try:
                look = _look(children, folder, share)
                if not look.memory:  # it is ending
                    break
                looks.append(look)
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                break
        time.sleep(0.02)
    ended = children.wait(math.inf)
    if not ended.well:
        raise Lost(f"{ended.statuses} {ended.said[-2000:]}")
    if "Traceback" in ended.said:
        raise Lost(ended.said[-2000:])
    return looks


def _look(children: Children, folder: Path, share: float) -> Look:
    process = Path("/proc") / str(children.pids[0])
    facts = process.joinpath("stat").read_text().rpartition(")")[2].split()
    seconds = (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK")
    memory = int(process.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Look(share, memory, len(os.listdir(process / "fd")), int(facts[17]), seconds, _size_of(folder))


def _size_of(folder: Path) -> int:
    """Bytes of all files but the logs, while the process renames and removes some of them and their folders."""
    size = 0
    for place, _, names in os.walk(folder):  # unlike rglob, it passes over a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                size += 0 if name in LOGS else os.lstat(os.path.join(place, name)).st_size
    return size


def _judged(looks: list[Look]) -> dict:
    """Slopes over the run after its warm-up, with their standard errors; Lost for one that is not flat."""
    table = np.array([look for look in looks if look.done >= WARM])
    if len(table) < 5:
        raise Lost(f"only {len(table)} looks at the run: it is too short")
    share = table[:, 0]
    facts = {"looks": len(table)}
    for i, name in enumerate(Look._fields[1:], 1):
        slope, error = slope_of(share, table[:, i])
        facts[name] = {"mean": float(table[:, i].mean()), "slope": slope, "error": error}
    for name, (part, least) in GROWTH.items():
        most = max(part * facts[name]["mean"], least)
        if facts[name]["slope"] - 3 * facts[name]["error"] > most:
            raise Lost(f"{name} grows by {facts[name]['slope']:.4g} ± {facts[name]['error']:.2g} over a run: {facts}")
    rates = np.diff(table[:, 4]) / np.diff(share)
    third = max(len(rates) // 3, 1)
    first, last = np.median(rates[:third]), np.median(rates[-third:])
    facts["seconds"]["last third to first"] = float(last / max(first, 1e-9))
    if last > SLOWER * first + TICKS / np.diff(share).mean():
        raise Lost(f"a step costs {last / max(first, 1e-9):.2f} times as much at the end: {facts}")
    return facts


def slope_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope of y over x by least squares, and its standard error."""
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    rest = y - y.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / max(len(x) - 2, 1) / (centred @ centred)))
