"""Import latents that other programs extracted into a latent store for training.

Two layouts are supported: <name>_features and <name>_labels folders of .npy files, with latents already
multiplied by their scale factor; and *.safetensors with raw latents, labels and optionally latents_flip,
with or without latents_stats.pt. The same command continues an import that was stopped.
"""

import logging
from dataclasses import dataclass

from fpdm import cli
from fpdm.config import check_extent, check_positive, check_range, limits
from fpdm.data.codec import open_codec
from fpdm.data.importing import import_latents
from fpdm.data.latents import check_std

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is imported, and to where.

    Args:
        source: folder of the extracted latents.
        out: folder of the store.
        vae: VAE of the latents, a local folder or Hub id of an AutoencoderKL (null if not known: one can
            train on the latents, but must give a VAE for sampling).
        scale: scale factor of the latents; raw ones are multiplied by it (null for the VAE's, and for 1
            after normalising by latents_stats.pt).
        resolution: resolution of the images, for the record: 256 for squares, or height,width (null for what follows
            from the VAE).
        class_names: file with one class name per line (null for "0", "1", ...).
        name: which set to import, if the folder holds several <name>_features.
        shard: latents per file of the store.
    """

    source: str = ""
    out: str = "data/latents"
    vae: str | None = None
    scale: float | None = None
    resolution: int | list[int] | None = None
    class_names: str | None = None
    name: str | None = None
    shard: int = 4096

    def __post_init__(self):
        check_range(1, limits.RECORDS, shard=self.shard)
        check_extent(limits.RESOLUTION, resolution=self.resolution)
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
    """The command fpdm-import-latents: main(), with one-line error messages."""
    cli.run(main)
