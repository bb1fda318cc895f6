"""Images -> latent store."""

from pathlib import Path

import torch
from tqdm import tqdm

from fpdm.config import EncodeConfig
from fpdm.data.batches import image_batches, to_signed
from fpdm.data.codec import Codec
from fpdm.data.images import ImageSet
from fpdm.data.latents import LatentWriter, Manifest


def encode(images: ImageSet, codec: Codec, folder: str | Path, config: EncodeConfig, device: torch.device) -> Manifest:
    """Write the store `folder`; its manifest, with the count of what was skipped."""
    if config.resolution % codec.downsampling:
        raise ValueError(
            f"resolution={config.resolution}: not a multiple of {codec.downsampling}, the VAE's downsampling"
        )
    size = config.resolution // codec.downsampling
    flips = 2 if config.mirror else 1
    with torch.no_grad():
        probe = codec.encode(torch.zeros(1, 3, config.resolution, config.resolution, device=device))
    manifest = Manifest(
        codec=codec.source,
        fingerprint=codec.fingerprint,
        scale=codec.scale,
        resolution=config.resolution,
        crop="centre",
        shape=[codec.channels, size, size],
        flips=flips,
        parts=1 if probe.std is None else 2,
        class_names=images.class_names,
    )
    writer = LatentWriter(folder, manifest)
    with tqdm(total=len(images), desc="encode", unit="image") as progress:
        for indices, pixels, labels in image_batches(
            images, config.resolution, config.batch_size, config.workers, config.skip_broken
        ):
            x = to_signed(pixels.to(device))
            writer.write(labels, [codec.encode(view) for view in (x, x.flip(-1))[:flips]])
            progress.update(int(indices[-1]) + 1 - progress.n)  # skipped images are done with too
        progress.update(len(images) - progress.n)
    manifest.skipped = len(images) - manifest.count
    return writer.close()
