"""Train a small AutoencoderKL on a folder, a zip or the digits. A tenth of the images, chosen by a hash of their names,
is held out to measure its reconstruction."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fpdm import cli
from fpdm.config import VAEConfig
from fpdm.data.images import open_parts
from fpdm.devices import process_state
from fpdm.files import check_new, new_folder
from fpdm.sampling.images import save_grid
from fpdm.training.vae import pixel_batches, reconstruction, restore, train_vae

logger = logging.getLogger("fpdm")
STRIP_IMAGES = 16


@dataclass
class Settings(VAEConfig):
    __doc__ = (
        VAEConfig.__doc__
        + """    images: folder or zip of images, or digits; SOURCE@training is the same as SOURCE.
        out: folder for the VAE, reconstruction.json and reconstruction.png (images over their reconstructions).
    """
    )

    images: str = "digits"
    out: str = "results/vae"


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    out = Path(settings.out)
    check_new(out)
    training, held_out = open_parts(settings.images)
    device = process_state().device
    vae = train_vae(training, settings, device)
    result = reconstruction(vae, held_out, settings, device)
    facts = result._asdict() | {"held_out_images": len(held_out), "scaling_factor": vae.config.scaling_factor}
    pixels = next(pixel_batches(held_out.subset(list(range(min(STRIP_IMAGES, len(held_out))))), settings))
    strip = torch.cat([pixels, restore(vae, pixels, device)])
    with new_folder(out) as partial:
        vae.save_pretrained(partial)
        (partial / "reconstruction.json").write_text(json.dumps(facts | {"settings": asdict(settings)}, indent=1))
        save_grid(strip, partial / "reconstruction.png", columns=len(pixels))
        for weights in partial.glob("*.safetensors"):  # written readable only by their owner
            weights.chmod((partial / "reconstruction.json").stat().st_mode)
    logger.info(
        f"{out}: reconstruction MSE {result.mse:.2e} (pixel values 0..1), PSNR {result.psnr:.1f} dB "
        f"on {len(held_out)} held-out images; latents scaled by {vae.config.scaling_factor:.3f}"
    )


def run() -> None:
    """The command fpdm-train-vae: main(), with one-line error messages."""
    cli.run(main)
