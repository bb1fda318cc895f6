"""A folder of samples: PNGs named by index, a grid, ADM's npz, and their recipe. One process or several can write it.

Only missing images are written, each by one process. The files of a batch are written while the next batch is computed.
Batches are the same after an interruption, because the rounding of an image depends on the size of its batch.
"""

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from fpdm.config import check_range, limits
from fpdm.devices import SAMPLING_PATIENCE, process_state, tf32_as
from fpdm.files import make_folder, write_atomically
from fpdm.locks import only_writer
from fpdm.records import read_fields, shown
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.call import Source
from fpdm.sampling.generate import check_decodable, plan_for, sample_images, total_flops
from fpdm.sampling.images import (
    GRID,
    is_complete,
    load_pngs,
    open_folder,
    png_path,
    recipe_id,
    save_grid,
    save_npz,
    save_png,
)
from fpdm.sampling.plan import Plan, describe
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.trace import Fallbacks, Recorder, Spent, last_residuals, plot_residuals, save_trace

logger = logging.getLogger("fpdm")
GRID_IMAGES = 64
ALLOCATION = "allocation.json"


class Work(NamedTuple):
    """The common task of all processes: sample images from a source with these settings and this plan into a folder."""

    source: Source
    config: SamplingConfig
    plan: Plan
    folder: Path


@torch.inference_mode()
def sample_to_folder(
    source: Source,
    folder: str | Path | None = None,
    num_samples: int = 64,
    *,
    batch_size: int = 64,
    trace: int = 0,
    tf32: bool = True,
    **settings,
) -> Path:
    """Sample those of the images 0 to num_samples - 1 that are missing in the folder; returns the folder.

    With torchrun, every process must call this and samples its share of the images. The images do not depend on the
    number of processes.

    folder: by default `samples/<step>-<recipe>` in the checkpoint's run, or in the working directory. A folder holds
        images of one recipe; ValueError for another recipe, for fewer images than it already has, and while another
        program samples into it. A source that is
        not from `load_source` needs a folder that does not exist yet.
    batch_size: images per batch and process. settings: those of a SamplingConfig, as for `sample`.
    trace: number of images, from index 0, whose residuals and predictions are saved in the folder's trace/; at most
        batch_size.
    tf32: allow TF32 matrix products on GPUs that have them, while this runs.
    """
    check_sizes(num_samples, batch_size, trace)
    check_decodable(source)
    asked = SamplingConfig(**settings)
    config = asked.resolved(source.iterative)
    plan = plan_for(source, config)
    if config.reuse is None:
        config = replace(config, reuse=source.reuses(None))  # the recipe states the default explicitly
    state = process_state(SAMPLING_PATIENCE)
    recipe = make_recipe(source, config, asked.protocol, plan) | {"tf32": tf32, "num_samples": num_samples}
    work = Work(source, config, plan, _folder_for(source, folder, recipe))
    with ExitStack() as held, tf32_as(tf32):
        if state.is_main_process:
            _announce(work, recipe)
            make_folder(work.folder)
            held.enter_context(only_writer(work.folder))
            open_folder(work.folder, recipe)
        state.wait_for_everyone()
        _fill(work, state, num_samples, batch_size, trace)
        state.wait_for_everyone()
    return work.folder


@dataclass
class Allocation:
    """allocation.json: how many images it is about, and their mean number of updates at each timestep."""

    images: int
    updates: list[float]


def check_sizes(num_samples: int, batch_size: int, trace: int) -> None:
    """ValueError for numbers of images that are out of range."""
    check_range(1, limits.SAMPLES, num_samples=num_samples)
    check_range(1, limits.BATCH, batch_size=batch_size)
    check_range(0, limits.BATCH, trace=trace)
    if trace > batch_size:
        raise ValueError(f"trace={trace}: at most batch_size={batch_size}, because they are recorded as one batch")


def _folder_for(source: Source, folder: str | Path | None, recipe: dict) -> Path:
    """The folder, or the default one. Nothing says which model a source without origin has, so images that are there
    already could be another's."""
    if source.origin is None and (folder is None or Path(folder).exists()):
        raise ValueError(
            f"folder={folder}: this source does not say which checkpoint it is of (source.origin); give a folder that "
            "does not exist yet, or make the source with load_source"
        )
    return Path(folder or default_folder(recipe))


def _fill(work: Work, state: PartialState, num_samples: int, batch_size: int, trace: int) -> None:
    """Sample what is missing; on the main process, then write the grid, the npz and the summaries."""
    missing = [i for i in range(num_samples) if not is_complete(png_path(work.folder, i))]
    state.wait_for_everyone()  # no process writes before all have looked for missing images
    started = time.perf_counter()
    mine = list(range(num_samples))[state.process_index :: state.num_processes]
    spent, fallbacks = _make(work, mine, set(missing), batch_size, say=state.is_main_process)
    state.wait_for_everyone()
    rate = len(missing) / (time.perf_counter() - started)
    spent_by_all = gather_object([spent and (spent.images, spent.updates)])
    fallbacks_of_all = gather_object([fallbacks and (fallbacks.solves, fallbacks.count)])
    if state.is_main_process:
        first = load_pngs(work.folder, range(min(num_samples, GRID_IMAGES)))
        save_grid(torch.from_numpy(first).permute(0, 3, 1, 2), work.folder / GRID)
        save_npz(work.folder, num_samples)
        if spent and sum(count for count, _ in spent_by_all):
            logger.info(_write_allocation(work, spent_by_all))
        if fallbacks and missing:
            solves, taken_back = (sum(numbers) for numbers in zip(*fallbacks_of_all, strict=True))
            logger.info(f"Anderson acceleration took back {taken_back:,d} steps in {solves:,d} solves")
        if trace:
            _record(work, range(trace))
        made = f"{len(missing)} of them new, {rate:.1f} images/s" if missing else "all of them existed already"
        logger.info(f"{work.folder}: {num_samples} images, {made}")


def make_recipe(source: Source, config: SamplingConfig, protocol: str | None, plan: Plan) -> dict:
    """Everything that an image depends on, as saved in samples.json."""
    origin = source.origin or {}
    return {
        **{name: origin.get(name) for name in ("checkpoint", "weights", "precision")},
        "codec": origin.get("codec", source.codec.source),
        "sampling": asdict(config) | {"protocol": protocol},
        "plan": [list(step) for step in plan.steps],
        "block_passes": plan.block_passes,
        "flops_per_image": total_flops(config, plan),
    }


def default_folder(recipe: dict) -> Path:
    """samples/<step>-<recipe> in the checkpoint's run, or in the working directory if there is no run."""
    checkpoint = Path(recipe["checkpoint"])
    place = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path()
    return place / "samples" / f"{checkpoint.name}-{recipe_id(recipe)}"


def _announce(work: Work, recipe: dict) -> None:
    config = work.config
    if recipe["checkpoint"] is not None:
        logger.info(f"{recipe['checkpoint']} ({recipe['weights']} weights) -> {work.folder}")
    logger.info(describe(work.plan, recipe["flops_per_image"]))
    if at_run_time := ALLOCATIONS[config.allocation].at_run_time:
        logger.info(f"{config.allocation}: this is the maximum; {at_run_time.explain(config)}")


def _make(
    work: Work, indices: list[int], missing: set[int], batch_size: int, say: bool
) -> tuple[Spent | None, Fallbacks | None]:
    """Sample the batches of these images in which one is missing, and write the missing ones. Returns the updates spent
    (adaptive allocation only) and the fallbacks (Anderson only)."""
    source, config, plan, folder = work
    adaptive = ALLOCATIONS[config.allocation].at_run_time is not None
    counted = _counted_before(folder) if adaptive else 0
    spent = Spent(plan) if adaptive else None
    fallbacks = Fallbacks() if config.anderson else None
    observers = [observer for observer in (spent, fallbacks) if observer is not None]

    def on_step(*seen) -> None:
        for observer in observers:
            observer(*seen)

    again = [i for i in indices if i < counted]  # their updates were counted the first time
    batches = _batches(again, batch_size) + _batches(indices[len(again) :], batch_size)
    with (
        ThreadPoolExecutor(2) as writers,
        tqdm(total=len(missing.intersection(indices)), desc="sample", unit="image", disable=not say) as progress,
    ):
        writing = []
        for batch in [batch for batch in batches if missing.intersection(batch)]:
            watched = on_step if observers and batch[0] >= counted else None
            images = sample_images(source, config, plan, batch, watched).cpu()
            for job in writing:  # the previous batch's files, written while this batch was computed
                job.result()
            writing = [
                writers.submit(save_png, image, png_path(folder, i))
                for image, i in zip(images, batch, strict=True)
                if i in missing
            ]
            progress.update(len(writing))
        for job in writing:
            job.result()
    return spent, fallbacks


def _batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def _counted_before(folder: Path) -> int:
    """Number of images, from index 0, that allocation.json already covers."""
    path = folder / ALLOCATION
    return read_fields(path, Allocation)["images"] if path.is_file() else 0


def _write_allocation(work: Work, spent: list[tuple[int, Tensor]]) -> str:
    """Write the mean updates at each timestep over all images of the folder; returns a summary line."""
    plan, path = work.plan, work.folder / ALLOCATION
    if path.is_file():  # from images of earlier calls
        before = read_fields(path, Allocation)
        if len(before["updates"]) != len(plan.timesteps):
            raise ValueError(
                f"{path}: updates={shown(before['updates'])}: must be one for each of {len(plan.timesteps)} timesteps; "
                "remove it"
            )
        spent = [*spent, (before["images"], before["images"] * torch.tensor(before["updates"], dtype=torch.float64))]
    images = sum(count for count, _ in spent)
    mean = (sum(updates for _, updates in spent) / images).tolist()
    blocks, flops = plan.cost.total_blocks(mean), total_flops(work.config, plan, mean)
    facts = {"images": images, "timesteps": plan.timesteps, "updates": mean, "block_passes": blocks, "flops": flops}
    write_atomically(path, json.dumps(facts, indent=1))
    same = f"a constant plan with the same total has {sum(mean) / len(mean):.2f} per timestep"
    return (
        f"{work.config.allocation}: {blocks:.1f} block passes per image ({plan.block_passes} at most), "
        f"{flops / 1e9:.3f} GFLOPs; {min(mean):.1f} to {max(mean):.1f} updates per timestep, listed in {path}; {same}"
    )


def _record(work: Work, indices: Sequence[int]) -> None:
    """Sample images again, and save their residuals and predictions."""
    source, config, plan, folder = work
    recorder = Recorder()
    sample_images(source, config, plan, indices, recorder, with_residuals=source.iterative)
    trace = recorder.trace(plan)
    save_trace(trace, source.codec, folder / "trace")
    if trace.residuals is not None:
        plot_residuals(trace.timesteps, trace.residuals, folder / "trace" / "residuals.png")
        last, times = np.median(last_residuals(trace.residuals), axis=0), trace.timesteps
        logger.info(
            f"{folder / 'trace'}: residual of the last update, median over {len(indices)} images: {last[0]:.2g} at "
            f"t = {times[0]}, {last[-1]:.2g} at t = {times[-1]}"
        )
