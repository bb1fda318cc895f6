"""Draw images from a checkpoint: PNGs, a grid, and the npz of ADM's evaluator."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from fpdm import cli
from fpdm.config import SamplingConfig, check_range, limits
from fpdm.devices import allow_tf32, process_state
from fpdm.evaluation.figures import plot_residuals
from fpdm.files import read_json, write_atomically
from fpdm.loading import load_checkpoint, open_source
from fpdm.models import ForwardCost, compile_layers, forward_cost
from fpdm.sampling.generate import Source, check_config, draw_images, forward_passes, most_iterations, plan_for
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
from fpdm.sampling.trace import Fallbacks, Recorder, Spent, last_residuals, save_trace

logger = logging.getLogger("fpdm")
GRID_IMAGES = 64
ALLOCATION = "allocation.json"


@dataclass
class Settings(SamplingConfig):
    __doc__ = (
        SamplingConfig.__doc__
        + """    ckpt: a run's folder (its latest checkpoint), one checkpoint, or an exported folder or its Hub id.
        out: folder of the images; by default samples/<step>-<recipe> in the checkpoint's run, or here.
        num_samples: how many images; those already in the folder are kept.
        batch_size: images at a time, per process.
        weights: ema or model.
        precision: of the network, no, bf16 or fp16.
        tf32: allow TF32 matrix products where a GPU has them, of a network in float32 and of the VAE.
        compile: compile blocks and the implicit layer's update with torch.compile; pays for many images.
        trace: record so many images (those from index 0) into the folder's trace/: the residual of every update,
            and the image predicted at each timestep.
        vae: where the codec is, if it has moved since training.
    """
    )

    ckpt: str = ""
    out: str | None = None
    num_samples: int = 64
    batch_size: int = 64
    weights: str = "ema"
    precision: str = "no"
    tf32: bool = True
    compile: bool = False
    trace: int = 0
    vae: str | None = None

    def __post_init__(self):
        check_range(1, limits.SAMPLES, num_samples=self.num_samples)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(0, limits.BATCH, trace=self.trace)
        super().__post_init__()


def parser():
    return cli.make_parser(Settings, __doc__)


@torch.inference_mode()
def main() -> None:
    settings = cli.parse(Settings, parser())
    if not settings.ckpt:
        raise ValueError("ckpt is not set; give a run's folder or one of its checkpoints")
    if settings.trace > settings.batch_size:
        raise ValueError(f"trace={settings.trace}: at most batch_size={settings.batch_size}, for they are one batch")
    state = process_state(timedelta(hours=6))  # the images still missing may be dearer in one process than in others
    allow_tf32(settings.tf32)
    model, facts, checkpoint = load_checkpoint(settings.ckpt, settings.weights)
    weights = facts.get("weights", settings.weights)  # an exported folder has one kind, and says which
    cost = forward_cost(model)
    source = open_source(model, facts, settings.vae, state.device, settings.precision)
    if settings.compile:
        compile_layers(model)
    asked = SamplingConfig(**{name: getattr(settings, name) for name in SamplingConfig.__dataclass_fields__})
    config = asked.resolved(source.iterative)
    config = replace(config, reuse=source.iterative if config.reuse is None else config.reuse)  # said either way
    check_config(source, config)
    plan = plan_for(source, config)
    passes = forward_passes(config, plan)
    if config.cfg_scale != 1 and max(passes) == 1:
        raise ValueError(f"cfg_interval={config.cfg_interval}: none of the timesteps {plan.timesteps} is in it")
    flops = sum(twice * cost.flops(k) for twice, k in zip(passes, plan.iterations, strict=True))
    recipe = {
        "checkpoint": str(checkpoint),
        "weights": weights,
        "precision": settings.precision,
        "tf32": settings.tf32,
        "codec": facts["codec"],
        "sampling": asdict(config) | {"protocol": asked.protocol},
        "plan": [list(step) for step in plan.steps],
        "block_passes": plan.block_passes,
        "flops_per_image": flops,
        "num_samples": settings.num_samples,
    }
    place = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path()
    default = place / "samples" / f"{checkpoint.name}-{recipe_id(recipe)}"
    out = Path(settings.out or default)
    adaptive = config.allocation == "adaptive"
    if state.is_main_process:
        logger.info(f"{checkpoint} ({weights} weights) -> {out}")
        logger.info(describe(plan, flops))
        if adaptive:
            logger.info(
                f"adaptive: this is the most; each image is iterated until its residual is {config.tolerance:g}, "
                f"at most {most_iterations(config)} times at a timestep"
            )
        open_folder(out, recipe)
    state.wait_for_everyone()

    missing = [i for i in range(settings.num_samples) if not is_complete(png_path(out, i))]
    state.wait_for_everyone()  # nobody writes before everybody has looked
    counted = counted_before(out / ALLOCATION) if adaptive else 0
    mine = missing[state.process_index :: state.num_processes]
    spent = Spent(plan) if adaptive else None
    fallbacks = Fallbacks() if config.anderson else None
    observers = [observer for observer in (spent, fallbacks) if observer is not None]

    def on_step(*seen) -> None:
        for observer in observers:
            observer(*seen)

    started = time.perf_counter()
    with (
        ThreadPoolExecutor(2) as writers,
        tqdm(total=len(mine), desc="sample", unit="image", disable=not state.is_main_process) as progress,
    ):
        writing = []
        again = [i for i in mine if i < counted]  # drawn anew: what they spend was counted the first time
        for indices in batches(again, settings.batch_size) + batches(mine[len(again) :], settings.batch_size):
            watched = on_step if observers and indices[0] >= counted else None
            images = draw_images(source, config, plan, indices, watched).cpu()
            for job in writing:  # of the batch before: written while this one was drawn
                job.result()
            writing = [
                writers.submit(save_png, image, png_path(out, i)) for image, i in zip(images, indices, strict=True)
            ]
            progress.update(len(indices))
        for job in writing:
            job.result()
    state.wait_for_everyone()
    rate = len(missing) / (time.perf_counter() - started)
    spent_by_all = gather_object([(spent.images, spent.updates)] if spent else [None])
    fallbacks_of_all = gather_object([(fallbacks.solves, fallbacks.count)] if fallbacks else [None])
    if state.is_main_process:
        count = min(settings.num_samples, GRID_IMAGES)
        save_grid(torch.from_numpy(load_pngs(out, range(count))).permute(0, 3, 1, 2), out / GRID)
        save_npz(out, settings.num_samples)
        if spent and sum(count for count, _ in spent_by_all):
            logger.info(write_allocation(spent_by_all, plan, cost, passes, out / ALLOCATION))
        if fallbacks and missing:
            solves, taken_back = (sum(numbers) for numbers in zip(*fallbacks_of_all, strict=True))
            logger.info(f"Anderson acceleration took back {taken_back:,d} steps in {solves:,d} solves")
        if settings.trace:
            record_trace(source, config, plan, range(settings.trace), out / "trace")
        drawn = f"{len(missing)} of them drawn now, {rate:.1f} images/s" if missing else "all of them there already"
        logger.info(f"{out}: {settings.num_samples} images, {drawn}")


def batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def counted_before(path: Path) -> int:
    """How many images, from the first on, an allocation.json is of."""
    return read_json(path)["images"] if path.is_file() else 0


def write_allocation(
    spent: list[tuple[int, torch.Tensor]], plan: Plan, cost: ForwardCost, passes: list[int], path: Path
) -> str:
    """Mean updates at each timestep over all images of the folder, as JSON; returns the line that sums them up."""
    if path.is_file():  # of images drawn before
        before = read_json(path)
        spent = [*spent, (before["images"], before["images"] * torch.tensor(before["updates"], dtype=torch.float64))]
    images = sum(count for count, _ in spent)
    mean = (sum(updates for _, updates in spent) / images).tolist()
    blocks = plan.explicit_blocks * len(mean) + sum(mean)
    flops = sum(twice * cost.flops(k) for twice, k in zip(passes, mean, strict=True))
    facts = {"images": images, "timesteps": plan.timesteps, "updates": mean, "block_passes": blocks, "flops": flops}
    write_atomically(path, json.dumps(facts, indent=1))
    same = f"a constant plan of as many updates has {sum(mean) / len(mean):.2f} at each timestep"
    return (
        f"adaptive: {blocks:.1f} block passes per image ({plan.block_passes} at most), {flops / 1e9:.3f} GFLOPs; "
        f"{min(mean):.1f} to {max(mean):.1f} updates at a timestep, listed in {path}; {same}"
    )


def record_trace(source: Source, config: SamplingConfig, plan: Plan, indices: range, folder: Path) -> None:
    """Draw images once more and write what happened."""
    recorder = Recorder()
    draw_images(source, config, plan, indices, recorder, with_residuals=source.iterative)
    trace = recorder.trace(plan)
    save_trace(trace, source.codec, folder)
    if trace.residuals is not None:
        plot_residuals(trace.timesteps, trace.residuals, folder / "residuals.png")
        last = np.median(last_residuals(trace.residuals), axis=0)
        logger.info(f"{folder}: residual of the last update, median over {len(indices)} images: {last[0]:.2g} at "
                    f"t = {trace.timesteps[0]}, {last[-1]:.2g} at t = {trace.timesteps[-1]}")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
