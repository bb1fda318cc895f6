"""Score images against a reference: Fréchet distances, Inception score, KID, precision and recall.

--make-reference FILE keeps a reference's statistics; --self-test checks the installation."""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from fpdm import cli
from fpdm.config import check_choice, check_range, limits
from fpdm.data.images import DIGITS
from fpdm.devices import allow_tf32, process_state
from fpdm.evaluation.classifier import cached_classifier
from fpdm.evaluation.extraction import Extractor, Gathered, gather
from fpdm.evaluation.features import EXTRACTORS, DINOv2, Inception, weights_key
from fpdm.evaluation.references import has_images, is_reference, load_reference, save_reference
from fpdm.evaluation.samples import Samples, load_labelled
from fpdm.evaluation.scores import score
from fpdm.evaluation.selftest import check_metrics
from fpdm.evaluation.tables import markdown_table
from fpdm.files import read_json, write_atomically
from fpdm.sampling.images import RECIPE

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What to compare with what.

    Args:
        samples: folder or zip of images, or an npz with arr_0.
        reference: folder or zip of images (cropped as for training), an npz, or digits; or a file of statistics,
            from --make-reference or ADM's VIRTUAL_*.npz.
        features: inception (what published FIDs use), dinov2 (ViT-L/14; dinov2-s is the small one), or cnn (a
            classifier trained on the labelled reference in seconds; needs no download, and its scores compare only
            with each other).
        inception: local copy of the Inception weights; downloaded if not given.
        dinov2: local copy of the DINOv2 weights; downloaded if not given.
        make_reference: file to keep the reference's statistics in, instead of scoring.
        self_test: check the metrics on the reference's features and on Gaussians, instead of scoring.
        resolution: pixels that a reference is cropped and resized to, where there are no samples to say so.
        bootstrap: resamples behind the distance's standard deviation; 0 for none.
        keep: of how many images features are kept, for KID, precision and recall.
        cache: folder of trained classifiers and of features, so that nothing is computed twice.
        out: JSON file of the score; by default score-<features>.json beside the samples.
        batch_size: images at a time, per process.
        workers: processes that decode images, per process.
        tf32: allow TF32 matrix products where a GPU has them; scores then differ a little between kinds of GPU.
    """

    samples: str = ""
    reference: str = ""
    features: str = "inception"
    inception: str | None = None
    dinov2: str | None = None
    make_reference: str | None = None
    self_test: bool = False
    resolution: int | None = None
    bootstrap: int = 0
    keep: int = 50_000
    cache: str = "results/features"
    out: str | None = None
    batch_size: int = 64
    workers: int = 0
    tf32: bool = False

    def __post_init__(self):
        check_choice("features", self.features, EXTRACTORS)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(1, limits.RESOLUTION, resolution=self.resolution)
        check_range(4, limits.SAMPLES, keep=self.keep)
        check_range(0, limits.WORKERS, workers=self.workers)
        check_range(0, limits.REPEATS, bootstrap=self.bootstrap)
        if self.bootstrap == 1:
            raise ValueError("bootstrap=1: a standard deviation needs at least 2 resamples")
        if not self.reference:
            raise ValueError("reference is not set; give a folder, a zip or an npz of images")
        if not self.samples and not (self.make_reference or self.self_test):
            raise ValueError("samples is not set; give a folder, a zip or an npz of images")
        self._check_what_is_done()

    def _check_what_is_done(self) -> None:
        if self.make_reference and (self.self_test or self.samples):
            other = "self_test" if self.self_test else f"samples={self.samples}"
            raise ValueError(f"make_reference={self.make_reference} with {other}: one thing at a time; leave one out")
        if self.make_reference and self.features == "cnn":
            raise ValueError("make_reference with features=cnn: its classifier needs the images; use them as reference")
        if self.make_reference and not self.make_reference.endswith(".npz"):
            raise ValueError(f"make_reference={self.make_reference}: the file's name must end with .npz")
        if self.samples and self.resolution is not None:
            raise ValueError(f"resolution={self.resolution} with samples: theirs counts; leave it out")
        if not self.samples and self.resolution is None:
            raise ValueError("resolution is not set; without samples nothing says what the reference is cropped to")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    allow_tf32(settings.tf32)
    state = process_state(timedelta(hours=6))  # one process may train a classifier while the others wait
    for name in ("samples", "reference"):
        check_exists(name, getattr(settings, name))
    samples = Samples(settings.samples) if settings.samples else None
    recipe = recipe_of(samples) if samples else None
    resolution = samples.resolution if samples else settings.resolution
    stored = is_reference(settings.reference)
    if stored and (settings.make_reference or settings.features == "cnn"):
        what = "--make-reference" if settings.make_reference else "features=cnn"
        raise ValueError(f"reference {settings.reference}: holds statistics; {what} needs the images")
    with state.main_process_first():  # which trains, or downloads, what the others then find
        extractor, key = open_extractor(settings, resolution)
    measure = Measure(settings, extractor.to(state.device).eval(), key, state)
    facts = {"extractor": extractor.name, "key": key, "resolution": resolution, "tf32": settings.tf32}

    if stored:
        expected = load_reference(settings.reference, facts)
        if expected.kept is None and has_images(settings.reference):
            expected = expected._replace(kept=measure(Samples(settings.reference)).kept)
    else:
        expected = measure(Samples(settings.reference, resolution))
    if settings.make_reference:
        if state.is_main_process:
            save_reference(Path(settings.make_reference), expected, facts | {"source": settings.reference})
            logger.info(f"{settings.reference}: {expected.pool.count:,d} images -> {settings.make_reference}")
        return
    if settings.self_test:
        return self_test(expected, state.is_main_process)
    found = measure(samples)
    if not state.is_main_process:
        return
    values = score(found, expected, extractor.name, settings.bootstrap)
    logger.info("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    result = values | {
        "images": samples.count,
        "reference_images": expected.pool.count,
        "resolution": resolution,
        "extractor": key,
        "settings": asdict(settings),
        "sampling": recipe,
    }
    folder = Path(settings.samples)
    out = Path(settings.out or (folder if folder.is_dir() else folder.parent) / f"score-{settings.features}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(result, indent=1))
    logger.info(f"written to {out}")


def check_exists(name: str, source: str) -> None:
    if source and source != DIGITS and not Path(source).exists():
        raise FileNotFoundError(f"{name} {source} does not exist; give a folder, a zip or an npz of images")


class Measure(NamedTuple):
    """Samples -> what scores are made of."""

    settings: Settings
    extractor: Extractor
    key: str
    state: object

    def __call__(self, samples: Samples) -> Gathered:
        settings = self.settings
        tf32 = "-tf32" if settings.tf32 and self.state.device.type == "cuda" else ""
        name = f"{self.extractor.name}-{self.key}-{samples.fingerprint()}-{settings.keep}{tf32}"
        return gather(samples, self.extractor, Path(settings.cache) / name, self.state,
                      batch_size=settings.batch_size, workers=settings.workers, keep=settings.keep)  # fmt: skip


def recipe_of(samples: Samples) -> dict | None:
    """What the sampler wrote beside the images, if it did; ValueError where it is of another number of them."""
    folder = Path(samples.source)
    path = (folder if folder.is_dir() else folder.parent) / RECIPE
    if not path.is_file():
        return None
    recipe = read_json(path)
    if recipe["num_samples"] != samples.count:
        raise ValueError(
            f"samples {samples.source}: {samples.count} images, its {RECIPE} says {recipe['num_samples']}; "
            "draw the missing ones, or remove what does not belong"
        )
    return recipe


def open_extractor(settings: Settings, resolution: int) -> tuple[Extractor, str]:
    """The extractor, and what identifies its weights."""
    if settings.features == "inception":
        return Inception(settings.inception), weights_key(settings.inception, "torch-fidelity")
    if settings.features == "cnn":
        images, labels, classes = load_labelled(settings.reference, resolution, workers=settings.workers)
        return cached_classifier(images, labels, classes, Path(settings.cache))
    return DINOv2(settings.features, settings.dinov2), weights_key(settings.dinov2, "timm")


def self_test(reference: Gathered, say: bool) -> None:
    """A table of checks; ValueError if one failed."""
    if reference.kept is None:
        raise ValueError("self_test needs features: give a reference of images, not of statistics alone")
    checks = check_metrics(reference.kept)
    rows = [[c.what, f"{c.found:.6g}", f"{c.expected:.6g} ± {c.tolerance:.2g}", "ok" if c.passed else "WRONG"]
            for c in checks]  # fmt: skip
    if say:
        logger.info(markdown_table(["check", "found", "expected", ""], rows))
    failed = [check.what for check in checks if not check.passed]
    if failed:
        raise ValueError(f"self_test: {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")


if __name__ == "__main__":
    cli.run(main)
