"""Encode a folder, a zip or the digits into a latent store for training.

Several processes share the work: torchrun --nproc_per_node=8 scripts/encode_latents.py ...
The same command continues a run that was stopped.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

from fpdm import cli
from fpdm.config import EncodeConfig
from fpdm.data.attribute_files import with_attributes
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import check_std
from fpdm.devices import allow_tf32, arrive, check_precision, process_state
from fpdm.precision import PRECISIONS

logger = logging.getLogger("fpdm")


@dataclass
class Settings(EncodeConfig):
    __doc__ = (
        EncodeConfig.__doc__
        + """    images: folder or zip of images, or digits.
        vae: local folder or Hub id of an AutoencoderKL, or pixels.
        out: folder of the store.
        attributes: file with attributes of the images, for model.conditioning=attributes: CelebA's
            list_attr_celeba.txt, or a CSV with the header image,NAME,... (null for none, or for those in a zip's
            dataset.json).
    """
    )

    images: str = "digits"
    vae: str = "stabilityai/sd-vae-ft-ema"
    out: str = "data/latents"
    attributes: str | None = None


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    state = process_state(timedelta(days=2))  # after a stop, one process may have all of the remaining work
    check_precision("precision", settings.precision, state.device)
    allow_tf32(settings.tf32)
    images = open_images(settings.images)
    if settings.attributes is not None:
        images = with_attributes(images, settings.attributes)
    codec = open_codec(settings.vae, state.device, PRECISIONS[settings.precision])
    manifest = encode(
        images, codec, settings.out, settings, state.device,
        state.process_index, state.num_processes, state.wait_for_everyone, arrive,
    )  # fmt: skip
    if manifest is None:
        return
    conditions = f"{len(manifest.class_names)} class(es)"
    if manifest.attribute_names:
        conditions += f", {len(manifest.attribute_names)} attribute(s)"
    logger.info(
        f"{settings.out}: {manifest.count:,d} latents {tuple(manifest.shape)}, {conditions}, "
        f"{manifest.flips} flip(s), {manifest.skipped} broken image(s) skipped, standard deviation {manifest.std:.3f}"
    )
    if warning := check_std(manifest):
        logger.warning(warning)
    if images.attributes and (constant := images.attributes.constant()):
        logger.warning(f"warning: the same in all images: {', '.join(constant)}; nothing can be learned from that")


def run() -> None:
    """The command fpdm-encode-latents: main(), with one-line error messages."""
    cli.run(main)
