"""What comes before training: the autoencoder, and images turned into latents."""

from dataclasses import dataclass

from fpdm.config.checks import PRECISIONS, check_at_least, check_choice


@dataclass
class VAEConfig:
    """The autoencoder and its training.

    Args:
        resolution: images are cropped and resized to this many pixels.
        widths: channels of each level; every level after the first halves the resolution.
        latent_channels: channels of the latent.
        layers_per_block: residual blocks per level.
        steps: optimizer steps.
        batch_size: images per step.
        lr: peak learning rate; rises over the first 5 % of steps, then falls to 0 (cosine).
        kl_weight: weight of the KL term, per latent value, against the squared error per pixel value.
        ema_decay: of the averaged weights, which are the ones saved.
        mirror: also train on mirror images.
        held_out: share of the images kept for measuring the reconstruction.
        seed: of weights, order and latent draws.
        workers: processes that decode images.
        skip_broken: leave out files that cannot be decoded instead of stopping.
    """

    resolution: int = 256
    widths: tuple[int, ...] = (64, 128, 128)
    latent_channels: int = 4
    layers_per_block: int = 1
    steps: int = 20_000
    batch_size: int = 64
    lr: float = 1e-3
    kl_weight: float = 1e-6
    ema_decay: float = 0.99
    mirror: bool = False
    held_out: float = 0.1
    seed: int = 0
    workers: int = 0
    skip_broken: bool = False

    def __post_init__(self):
        for name in ("resolution", "latent_channels", "layers_per_block", "steps", "batch_size"):
            check_at_least(1, **{name: getattr(self, name)})
        factor = 2 ** (len(self.widths) - 1)
        if not self.widths or self.resolution % factor:
            raise ValueError(f"resolution={self.resolution}: not a multiple of {factor} ({len(self.widths)} levels)")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: a share, 0 < held_out < 1")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: must be positive")


@dataclass
class EncodeConfig:
    """How images become latents.

    Args:
        resolution: images are cropped and resized to this many pixels.
        mirror: also store the mirror image's latents, for training with data.mirror.
        batch_size: images through the codec at a time, per process.
        precision: of the codec's arithmetic, no (float32), bf16 or fp16.
        shard: images per file of the store, the portion that processes share out among themselves.
        workers: processes that decode images, per process.
        skip_broken: leave out (and count) files that cannot be decoded instead of stopping.
    """

    resolution: int = 256
    mirror: bool = True
    batch_size: int = 64
    precision: str = "no"
    shard: int = 4096
    workers: int = 0
    skip_broken: bool = False

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)
        check_at_least(1, resolution=self.resolution, batch_size=self.batch_size, shard=self.shard)
        check_at_least(0, workers=self.workers)
