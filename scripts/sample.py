"""Draw images from a checkpoint: PNGs, a grid, and the npz of ADM's evaluator."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fpdm import cli
from fpdm.config import SamplingConfig, check_at_least
from fpdm.devices import process_state
from fpdm.models import forward_cost
from fpdm.pipeline import load_checkpoint, open_source
from fpdm.sampling.generate import check_config, draw_images, plan_for
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
from fpdm.sampling.plan import describe

logger = logging.getLogger("fpdm")
GRID_IMAGES = 64


@dataclass
class Settings(SamplingConfig):
    __doc__ = (
        SamplingConfig.__doc__
        + """    ckpt: a run's folder (its latest checkpoint), or one checkpoint.
        out: folder of the images; by default samples/<step>-<recipe> in the checkpoint's run.
        num_samples: how many images; those already in the folder are kept.
        batch_size: images at a time, per process.
        weights: ema or model.
        precision: of the network, no, bf16 or fp16.
        vae: where the codec is, if it has moved since training.
    """
    )

    ckpt: str = ""
    out: str | None = None
    num_samples: int = 64
    batch_size: int = 64
    weights: str = "ema"
    precision: str = "no"
    vae: str | None = None


def parser():
    return cli.make_parser(Settings, __doc__)


@torch.inference_mode()
def main() -> None:
    settings = cli.parse(Settings, parser())
    check_at_least(1, num_samples=settings.num_samples, batch_size=settings.batch_size)
    if not settings.ckpt:
        raise ValueError("ckpt is not set; give a run's folder or one of its checkpoints")
    state = process_state()
    model, facts, checkpoint = load_checkpoint(settings.ckpt, settings.weights)
    cost = forward_cost(model)
    source = open_source(model, facts, settings.vae, state.device, settings.precision)
    config = SamplingConfig(**{name: getattr(settings, name) for name in SamplingConfig.__dataclass_fields__})
    check_config(source, config)
    plan = plan_for(source, config)
    flops = cost.total_flops(plan.iterations) * (2 if config.cfg_scale != 1 else 1)
    recipe = {
        "checkpoint": str(checkpoint),
        "weights": settings.weights,
        "precision": settings.precision,
        "codec": facts["codec"],
        "sampling": asdict(config),
        "plan": [list(step) for step in plan.steps],
        "block_passes": plan.block_passes,
        "flops_per_image": flops,
        "num_samples": settings.num_samples,
    }
    default = checkpoint.parent.parent / "samples" / f"{checkpoint.name}-{recipe_id(recipe)}"
    out = Path(settings.out or default)
    if state.is_main_process:
        logger.info(f"{checkpoint} ({settings.weights} weights) -> {out}")
        logger.info(describe(plan, flops))
        open_folder(out, recipe)
    state.wait_for_everyone()

    missing = [i for i in range(settings.num_samples) if not is_complete(png_path(out, i))]
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = missing[state.process_index :: state.num_processes]
    started = time.perf_counter()
    with (
        ThreadPoolExecutor(2) as writers,
        tqdm(total=len(mine), desc="sample", unit="image", disable=not state.is_main_process) as progress,
    ):
        writing = []
        for first in range(0, len(mine), settings.batch_size):
            indices = mine[first : first + settings.batch_size]
            images = draw_images(source, config, plan, indices).cpu()
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
    if state.is_main_process:
        count = min(settings.num_samples, GRID_IMAGES)
        save_grid(torch.from_numpy(load_pngs(out, range(count))).permute(0, 3, 1, 2), out / GRID)
        save_npz(out, settings.num_samples)
        drawn = f"{len(missing)} of them drawn now, {rate:.1f} images/s" if missing else "all of them there already"
        logger.info(f"{out}: {settings.num_samples} images, {drawn}")


if __name__ == "__main__":
    cli.run(main)
