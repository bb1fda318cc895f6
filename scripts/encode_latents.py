"""Encode a folder, a zip or the digits into a latent store for training."""

import logging
from dataclasses import dataclass

from fpdm import cli
from fpdm.config import EncodeConfig
from fpdm.data.codec import PIXELS, open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.devices import process_state

logger = logging.getLogger("fpdm")


@dataclass
class Settings(EncodeConfig):
    __doc__ = (
        EncodeConfig.__doc__
        + """    images: folder or zip of images, or digits.
        vae: local folder or Hub id of an AutoencoderKL, or pixels.
        out: folder of the store.
    """
    )

    images: str = "digits"
    vae: str = "stabilityai/sd-vae-ft-ema"
    out: str = "data/latents"


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    device = process_state().device
    images = open_images(settings.images)
    manifest = encode(images, open_codec(settings.vae, device), settings.out, settings, device)
    logger.info(
        f"{settings.out}: {manifest.count:,d} latents {tuple(manifest.shape)}, {len(manifest.class_names)} class(es), "
        f"{manifest.flips} flip(s), {manifest.skipped} broken image(s) skipped, standard deviation {manifest.std:.3f}"
    )
    if settings.vae != PIXELS and not 0.7 <= manifest.std <= 1.3:
        logger.warning(
            f"warning: the latents' standard deviation is {manifest.std:.3f}, outside 0.7..1.3: the VAE's "
            "scaling_factor does not fit these images, and the noise schedule assumes 1"
        )


if __name__ == "__main__":
    cli.run(main)
