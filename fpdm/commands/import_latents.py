"""Import latents that other programs extracted into a latent store for training.

Two layouts are read: <name>_features and <name>_labels folders of .npy files, latents already
multiplied with their scale factor; and *.safetensors with latents, labels and perhaps latents_flip,
raw, with or without latents_stats.pt. An import that was stopped is continued by the same command.
"""

import logging
from dataclasses import dataclass

from fpdm import cli
from fpdm.config import check_positive, check_range, limits
from fpdm.data.codec import open_codec
from fpdm.data.importing import import_latents
from fpdm.data.latents import check_std

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is imported and where to.

    Args:
        source: folder of the extracted latents.
        out: folder of the store.
        vae: what made them, a local folder or Hub id of an AutoencoderKL (null if not known: the
            latents can be trained on, but drawing images needs a VAE to be named).
        scale: scale factor of the latents; raw ones are multiplied with it (null for the VAE's, and for 1
            after normalising by latents_stats.pt).
        resolution: of the images, for the record (null for what follows from the VAE).
        class_names: file with one class name per line (null for "0", "1", ...).
        name: which set to import, where the folder holds several <name>_features.
        shard: latents per file of the store.
    """

    source: str = ""
    out: str = "data/latents"
    vae: str | None = None
    scale: float | None = None
    resolution: int | None = None
    class_names: str | None = None
    name: str | None = None
    shard: int = 4096

    def __post_init__(self):
        check_range(1, limits.RECORDS, shard=self.shard)
        check_range(1, limits.RESOLUTION, resolution=self.resolution)
        check_positive(limits.FACTOR, scale=self.scale)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    if not settings.source:
        raise ValueError("source is not set: give --source, the folder of the extracted latents")
    manifest = import_latents(
        settings.source,
        settings.out,
        open_codec(settings.vae) if settings.vae else None,
        settings.scale,
        settings.resolution,
        settings.class_names,
        settings.name,
        settings.shard,
    )
    logger.info(
        f"{settings.out}: {manifest.count:,d} latents {tuple(manifest.shape)}, {len(manifest.class_names)} class(es), "
        f"{manifest.flips} flip(s), standard deviation {manifest.std:.3f}"
    )
    if warning := check_std(manifest):
        logger.warning(warning)


def run() -> None:
    """The command fpdm-import-latents: main(), with a user's mistake told in one line."""
    cli.run(main)
