"""Score images against a reference: Fréchet distance, KID, precision and recall."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from fpdm import cli
from fpdm.config import check_at_least, check_choice
from fpdm.devices import process_state
from fpdm.evaluation.features import EXTRACTORS, Inception, cached_classifier, extract
from fpdm.evaluation.metrics import score
from fpdm.evaluation.samples import Samples, load_labelled
from fpdm.files import write_atomically
from fpdm.sampling.images import RECIPE

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What to compare with what.

    Args:
        samples: folder or zip of images, or an npz with arr_0.
        reference: folder or zip of images, an npz, or digits; cropped to the samples' resolution.
        features: inception (what published FIDs use), or cnn (a classifier trained on the labelled
            reference in seconds; needs no download, and its scores compare only with each other).
        inception: local copy of the Inception weights; downloaded if not given.
        cache: folder where trained classifiers are kept.
        out: JSON file of the score; by default score-<features>.json beside the samples.
        batch_size: images at a time.
    """

    samples: str = ""
    reference: str = ""
    features: str = "inception"
    inception: str | None = None
    cache: str = "results/features"
    out: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        check_choice("features", self.features, EXTRACTORS)
        check_at_least(1, batch_size=self.batch_size)
        for name in ("samples", "reference"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; give a folder, a zip or an npz of images")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    device = process_state().device
    samples = Samples(settings.samples)
    folder = Path(settings.samples)
    recipe_file = (folder if folder.is_dir() else folder.parent) / RECIPE
    recipe = json.loads(recipe_file.read_text()) if recipe_file.is_file() else None
    if recipe is not None and recipe["num_samples"] != samples.count:
        raise ValueError(
            f"samples {settings.samples}: {samples.count} images, its {RECIPE} says {recipe['num_samples']}; "
            "draw the missing ones, or remove what does not belong"
        )
    out = Path(settings.out or recipe_file.with_name(f"score-{settings.features}.json"))
    out.parent.mkdir(parents=True, exist_ok=True)
    reference = Samples(settings.reference, samples.resolution)
    if settings.features == "inception":
        extractor, key = Inception(settings.inception).to(device), settings.inception or "torch-fidelity"
    else:
        images, labels, classes = load_labelled(settings.reference, samples.resolution)
        extractor, key = cached_classifier(images, labels, classes, Path(settings.cache))
        extractor.to(device)

    features = extract(extractor, samples.batches(settings.batch_size), samples.count, device)
    expected = extract(extractor, reference.batches(settings.batch_size), reference.count, device)
    values = score(features, expected, settings.features)
    logger.info("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    result = values | {
        "images": samples.count,
        "reference_images": reference.count,
        "resolution": samples.resolution,
        "extractor": key,
        "settings": asdict(settings),
        "sampling": recipe,
    }
    write_atomically(out, json.dumps(result, indent=1))
    logger.info(f"written to {out}")


if __name__ == "__main__":
    cli.run(main)
