"""What is measured while a model trains."""

from dataclasses import dataclass, field

from fpdm.config import limits
from fpdm.config.checks import check_range


@dataclass
class ValidationConfig:
    """What run.validate_every measures with the averaged weights. It does not change the training.

    Args:
        latents: store of held-out latents, made with encode_latents.py --images SOURCE@held-out, whose loss is
            measured; null for no loss. Noise and timesteps are the same each time and in every run.
        count: how many of these latents, evenly spread (null for all).
        reference: real images, as evaluate.py takes them, from which the Fréchet distance of sampled images is
            measured; null for none.
        samples: number of images that are sampled for it.
        features: what images are compared by; see evaluate.py --features.
        weights: local weights of these features: the file of inception or dinov2, the folder of a classifier.
        iterations: numbers of iterations at which an FPDM is measured; a DiT ignores them.
        budget: block passes per sampled image.
        sampler: solver of the sampled images.
        batch_size: latents or images at a time, per process.
    """

    latents: str | None = None
    count: int | None = None
    reference: str | None = None
    samples: int = 1_000
    features: str = "inception"
    weights: str | None = None
    iterations: list[int] = field(default_factory=lambda: [1, 2, 4])
    budget: int = 280
    sampler: str = "ab2"
    batch_size: int = 100

    def __post_init__(self):
        check_range(1, limits.RECORDS, **{"validation.count": self.count})
        check_range(2, limits.SAMPLES, **{"validation.samples": self.samples})
        check_range(1, limits.ITERATIONS, **{"validation.iterations": self.iterations})
        check_range(1, limits.PASSES, **{"validation.budget": self.budget})
        check_range(1, limits.BATCH, **{"validation.batch_size": self.batch_size})
        if not self.iterations:
            raise ValueError("validation.iterations=[]: give at least one number of iterations, as in [1,2,4]")
