"""How images are scored."""

from dataclasses import dataclass

from fpdm.config import limits
from fpdm.config.checks import check_extent, check_range


@dataclass
class ScoringConfig:
    """How images are scored: the features, how many are kept, and how they are computed.

    Args:
        features: what the images are compared by: inception (published FIDs use it), dinov2 (ViT-L/14; dinov2-s is the
            small one), classifier (one that train_classifier.py made; by default that of CIFAR-10, which is in the
            repository), or cnn (a classifier trained in seconds on the labelled reference; it needs no download, and
            its scores compare only with each other).
        inception: local copy of the Inception weights; downloaded if not given.
        dinov2: local copy of the DINOv2 weights; downloaded if not given.
        classifier: folder of the classifier.
        held_out: real images not used for training; the reference must be the training images, as in
            SOURCE@held-out beside SOURCE@training. The distances of samples to their nearest reference images are
            then reported beside those of the held-out images: a model that memorises is too near.
        resolution: crop and resize the reference to this many pixels, 256 for squares or height,width; only for a
            reference file and the self-test. When samples are scored, their own resolution is used.
        bootstrap: number of resamples for the standard deviation of the distance; 0 for none.
        keep: number of images whose features are kept, for KID, precision and recall.
        cache: folder of trained classifiers and of features; what is in it is not computed again.
        batch_size: images per batch and process.
        workers: processes that decode images, per process.
        tf32: allow TF32 matrix products on GPUs that have them; scores then differ a little between kinds of GPU.
    """

    features: str = "inception"
    inception: str | None = None
    dinov2: str | None = None
    classifier: str = "assets/cifar10-classifier"
    held_out: str | None = None
    resolution: int | list[int] | None = None
    bootstrap: int = 0
    keep: int = 50_000
    cache: str = "results/features"
    batch_size: int = 64
    workers: int = 0
    tf32: bool = False

    def __post_init__(self):
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_extent(limits.RESOLUTION, resolution=self.resolution)
        check_range(4, limits.SAMPLES, keep=self.keep)
        check_range(0, limits.WORKERS, workers=self.workers)
        check_range(0, limits.REPEATS, bootstrap=self.bootstrap)
        if self.bootstrap == 1:
            raise ValueError("bootstrap=1: a standard deviation needs at least 2 resamples")
