"""Train a DiT or an FPDM on a latent store: one process, or several under torchrun."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fpdm import cli
from fpdm.config import ExperimentConfig, SamplingConfig
from fpdm.data.codec import open_codec
from fpdm.data.latents import LatentStore, check_codec
from fpdm.devices import process_state
from fpdm.diffusion import Diffusion
from fpdm.pipeline import make_source
from fpdm.sampling.generate import draw_images, plan_for
from fpdm.sampling.images import save_grid
from fpdm.training.loop import train

PREVIEW_IMAGES = 16
PREVIEW_BUDGET = 280  # the paper's middle budget for a DiT of 28 blocks; shallower ones get as many steps


@dataclass
class Settings(ExperimentConfig):
    __doc__ = (
        ExperimentConfig.__doc__
        + """    resume: latest (newest run of this name), a run's folder or one of its checkpoints.
        vae: where previews find the codec, if it has moved since the latents were made.
    """
    )

    resume: str | None = None
    vae: str | None = None


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    if not settings.data.latents:
        raise ValueError("data.latents is not set; give the store that scripts/encode_latents.py wrote")
    if not process_state().is_main_process:
        logging.getLogger("fpdm").setLevel(logging.ERROR)
    experiment = ExperimentConfig(**{name: getattr(settings, name) for name in ExperimentConfig.__dataclass_fields__})
    preview = make_preview(settings) if settings.run.preview_every else None
    train(experiment, settings.resume, preview)


def make_preview(settings: Settings):
    """A callback that draws a grid from the EMA into the run's samples/."""
    manifest = LatentStore(settings.data.latents).manifest
    codec = open_codec(settings.vae or manifest.codec, process_state().device)
    check_codec(manifest, codec, settings.data.latents)
    diffusion = Diffusion(**vars(settings.diffusion))

    def preview(run: Path, step: int, model: nn.Module) -> None:
        source = make_source(model, diffusion, codec)
        config = SamplingConfig(budget=PREVIEW_BUDGET, seed=settings.run.seed)
        images = draw_images(source, config, plan_for(source, config), range(PREVIEW_IMAGES))
        (run / "samples").mkdir(exist_ok=True)
        save_grid(images, run / "samples" / f"{step:07d}.png")

    return preview


if __name__ == "__main__":
    cli.run(main)
