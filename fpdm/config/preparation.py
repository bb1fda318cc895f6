"""What comes before training: the autoencoder, and encoding images as latents."""

from dataclasses import dataclass

from fpdm.config import limits
from fpdm.config.checks import check_choice, check_extent, check_positive, check_range
from fpdm.extent import check_multiple
from fpdm.precision import PRECISIONS


@dataclass
class VAEConfig:
    """The autoencoder and its training.

    Args:
        resolution: images are cropped and resized to this many pixels: 256 for squares, or height,width.
        widths: number of channels of each level; every level after the first halves the resolution.
        latent_channels: number of channels of the latent.
        layers_per_block: residual blocks per level.
        steps: optimizer steps.
        batch_size: images per step.
        lr: peak learning rate; rises over the first 5 % of steps, then falls to 0 (cosine).
        kl_weight: weight of the KL term, per latent value, relative to the squared error per pixel value.
        ema_decay: decay of the averaged weights (EMA), which are saved.
        mirror: also train on mirror images.
        seed: seed of weights, order and latent samples.
        workers: number of processes that decode images.
        skip_broken: skip files that cannot be decoded, instead of stopping.
    """

    resolution: int | list[int] = 256
    widths: tuple[int, ...] = (64, 128, 128)
    latent_channels: int = 4
    layers_per_block: int = 1
    steps: int = 20_000
    batch_size: int = 64
    lr: float = 1e-3
    kl_weight: float = 1e-6
    ema_decay: float = 0.99
    mirror: bool = False
    seed: int = 0
    workers: int = 0
    skip_broken: bool = False

    def __post_init__(self):
        check_extent(limits.RESOLUTION, resolution=self.resolution)
        check_range(1, limits.CHANNELS, widths=self.widths, latent_channels=self.latent_channels)
        check_range(1, limits.DEPTH, layers_per_block=self.layers_per_block)
        check_range(1, limits.STEPS, steps=self.steps)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(0, limits.SEED, seed=self.seed)
        check_range(0, limits.WORKERS, workers=self.workers)
        check_positive(limits.FACTOR, lr=self.lr)
        check_range(0, limits.FACTOR, kl_weight=self.kl_weight)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: 0 <= decay < 1")
        if not self.widths:
            raise ValueError(f"widths={self.widths}: give at least one level")
        levels = len(self.widths)
        check_multiple("resolution", self.resolution, 2 ** (levels - 1), f"the downsampling of {levels} levels")


@dataclass
class EncodeConfig:
    """How images are encoded as latents.

    Args:
        resolution: images are cropped and resized to this many pixels: 256 for squares, or height,width.
        mirror: also store the mirror image's latents, for training with data.mirror.
        batch_size: images that the codec takes at a time, per process.
        precision: precision of the codec's arithmetic: no (float32), bf16 or fp16.
        tf32: allow TF32 convolutions and matrix products of a float32 VAE on GPUs that have them: faster, and a
            little less exact. In 16 bits it makes no difference.
        shard: images per file of the store; several processes share the work by files.
        workers: number of processes that decode images, per process.
        skip_broken: skip (and count) files that cannot be decoded, instead of stopping.
    """

    resolution: int | list[int] = 256
    mirror: bool = True
    batch_size: int = 64
    precision: str = "no"
    tf32: bool = False
    shard: int = 4096
    workers: int = 0
    skip_broken: bool = False

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)
        check_extent(limits.RESOLUTION, resolution=self.resolution)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(1, limits.RECORDS, shard=self.shard)
        check_range(0, limits.WORKERS, workers=self.workers)
