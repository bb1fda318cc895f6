"""Score a set of images against a reference, make a reference file, check an installation.

All three functions run alone or under torchrun (or `accelerate launch`), where every process must call them.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from fpdm.config import ScoringConfig, check_choice
from fpdm.data.images import DIGITS, source_and_part
from fpdm.devices import process_state, tf32_as
from fpdm.evaluation.extraction import Gathered, gather
from fpdm.evaluation.features import EXTRACTORS, FITTED, Extractor
from fpdm.evaluation.references import has_images, is_reference, load_reference, save_reference
from fpdm.evaluation.samples import Samples
from fpdm.evaluation.scores import score
from fpdm.evaluation.selftest import Check, check_metrics
from fpdm.evaluation.tables import markdown_table
from fpdm.extent import Extent, plain
from fpdm.files import make_folder, write_atomically
from fpdm.sampling.images import RECIPE, read_recipe

logger = logging.getLogger("fpdm")
PATIENCE = timedelta(hours=6)  # one process may train a classifier or compute the scores while the others wait


def evaluate(samples: str | Path, reference: str | Path, *, out: str | Path | None = None, **settings) -> dict:
    """All scores of `samples` against `reference`, with what is needed to repeat them.

    samples: folder or zip of images, or an npz with arr_0 uint8 (count, H, W, 3).
    reference: the same, or `digits`, or a part, as in cifar10.zip@training, or a file of statistics (make_reference, or
        ADM's VIRTUAL_*.npz).
    out: JSON file that the main process writes the result to; without it nothing is written.
    settings: of a ScoringConfig, as in features="dinov2", bootstrap=10, batch_size=128; resolution is not among them.

    Returns the scores by name (METRICS), then images, reference_images, resolution, extractor (identifies its weights),
    settings, and sampling (the recipe beside the samples, or None). The main process computes and writes them; all
    processes return them. ValueError or FileNotFoundError, in one line, for settings and files that do not fit.
    """
    config, reference = _config(settings), _existing("reference", reference)
    samples = _existing("samples", samples)
    if config.resolution is not None:
        raise ValueError(f"resolution={config.resolution} with samples: their own resolution is used; leave it out")
    images = Samples(samples)
    recipe = recipe_of(images)
    measure = open_features(config, reference, images.resolution)
    expected, found = measure.reference(reference), measure(images)
    held_out = None
    if config.held_out is not None:
        if expected.kept is None:
            raise ValueError(
                f"held_out={config.held_out} with reference {reference}, which holds statistics alone: distances to "
                "the nearest images need the images themselves"
            )
        held_out = measure(Samples(_existing("held_out", config.held_out), measure.resolution))

    def result() -> dict:
        values = score(found, expected, measure.extractor.name, config.bootstrap, held_out)
        logger.info("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        scored = values | {
            "images": images.count,
            "reference_images": expected.pool.count,
            "resolution": images.resolution,
            "extractor": measure.key,
            "settings": {"samples": samples, "reference": reference, **asdict(config)},
            "sampling": recipe,
        }
        if out is not None:
            _write(Path(out), scored)
        return scored

    return _by_main(measure.state, result)


def make_reference(reference: str | Path, file: str | Path, **settings) -> int:
    """Write the statistics of the images `reference` to `file` (.npz); returns the number of images.

    settings: of a ScoringConfig; resolution must be set. Errors as in `evaluate`.
    """
    config, reference, file = _config(settings), _existing("reference", reference), Path(file)
    if config.features in FITTED:
        raise ValueError(
            f"make_reference with features={config.features}: its classifier needs the images; use them as reference"
        )
    if file.suffix != ".npz":
        raise ValueError(f"make_reference={file}: the file's name must end with .npz")
    if is_reference(reference):
        raise ValueError(f"reference {reference}: holds statistics; make_reference needs the images")
    measure = open_features(config, reference, _given_resolution(config))
    made = measure.reference(reference)

    def save() -> int:
        save_reference(file, made, measure.facts | {"source": reference})
        logger.info(f"{reference}: {made.pool.count:,d} images -> {file}")
        return made.pool.count

    return _by_main(measure.state, save)


def self_test(reference: str | Path, **settings) -> list[Check]:
    """Check the metrics on features of `reference` and on Gaussians, where the right numbers are known.

    settings: of a ScoringConfig; resolution must be set. Logs a table. ValueError if a check fails; other errors as in
    `evaluate`.
    """
    config, reference = _config(settings), _existing("reference", reference)
    measure = open_features(config, reference, _given_resolution(config))
    features = measure.reference(reference).kept
    if features is None:
        raise ValueError("self_test needs features: give a reference of images, not of statistics alone")
    checks = check_metrics(features)
    rows = [[c.what, f"{c.found:.6g}", f"{c.expected:.6g} ± {c.tolerance:.2g}", "ok" if c.passed else "WRONG"]
            for c in checks]  # fmt: skip
    if measure.state.is_main_process:
        logger.info(markdown_table(["check", "found", "expected", ""], rows))
    failed = [check.what for check in checks if not check.passed]
    if failed:
        raise ValueError(f"self_test: {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")
    return checks


def recipe_of(samples: Samples) -> dict | None:
    """The recipe that sample.py wrote beside the images, or None; ValueError if it is for another number of images."""
    folder = Path(samples.source)
    path = (folder if folder.is_dir() else folder.parent) / RECIPE
    if not path.is_file():
        return None
    recipe = read_recipe(path)
    if recipe["num_samples"] != samples.count:
        raise ValueError(
            f"samples {samples.source}: {samples.count} images, its {RECIPE} says {recipe['num_samples']}; "
            "sample the missing images, or remove those that do not belong"
        )
    return recipe


class ImageFeatures(NamedTuple):
    """An extractor on this process's device: images -> the statistics and features that scores are computed from."""

    config: ScoringConfig
    extractor: Extractor
    key: str  # identifies the extractor's weights
    resolution: int | list[int]
    state: PartialState

    @property
    def facts(self) -> dict:
        """What a reference file must agree with."""
        return {"extractor": self.extractor.name, "key": self.key, "resolution": self.resolution,
                "tf32": self.config.tf32}  # fmt: skip

    def __call__(self, samples: Samples) -> Gathered:
        config = self.config
        tf32 = "-tf32" if config.tf32 and self.state.device.type == "cuda" else ""
        name = f"{self.extractor.name}-{self.key}-{samples.fingerprint()}-{config.keep}{tf32}"
        with tf32_as(config.tf32):
            return gather(samples, self.extractor, Path(config.cache) / name, self.state,
                          batch_size=config.batch_size, workers=config.workers, keep=config.keep)  # fmt: skip

    def reference(self, source: str) -> Gathered:
        if not is_reference(source):
            return self(Samples(source, self.resolution))
        stored = load_reference(source, self.facts)
        if stored.kept is None and has_images(source):  # ADM's files have images in place of features
            return stored._replace(kept=self(Samples(source)).kept)
        return stored


def open_features(config: ScoringConfig, reference: str, resolution: Extent) -> ImageFeatures:
    """The configured extractor on every process; ValueError or FileNotFoundError if it cannot be opened."""
    if config.features in FITTED and is_reference(reference):
        raise ValueError(f"reference {reference}: holds statistics; features={config.features} needs the images")
    state, resolution = process_state(PATIENCE), plain(resolution)
    with state.main_process_first():  # it trains or downloads what the other processes then load
        extractor, key = EXTRACTORS[config.features](config, reference, resolution)
    return ImageFeatures(config, extractor.to(state.device).eval(), key, resolution, state)


def _by_main(state: PartialState, work: Callable[[], Any]) -> Any:
    """What `work` returns or raises on the main process, on all processes; otherwise they would wait for it."""
    outcome = None
    if state.is_main_process:
        try:
            outcome = work()
        except (ValueError, OSError) as error:
            outcome = error
    (outcome,) = broadcast_object_list([outcome])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _config(settings: dict) -> ScoringConfig:
    """Checked, with paths as text, which JSON can hold."""
    config = ScoringConfig(**{name: str(v) if isinstance(v, Path) else v for name, v in settings.items()})
    check_choice("features", config.features, EXTRACTORS)
    return config


def _existing(name: str, source: str | Path) -> str:
    source = str(source)
    if not source:
        raise ValueError(f"{name} is not set; give a folder, a zip or an npz of images")
    whole, _ = source_and_part(source)
    if whole != DIGITS and not Path(whole).exists():
        raise FileNotFoundError(f"{name} {source} does not exist; give a folder, a zip or an npz of images")
    return source


def _given_resolution(config: ScoringConfig) -> int | list[int]:
    if config.held_out is not None:
        raise ValueError(f"held_out={config.held_out} without samples: there is nothing to compare; leave it out")
    if config.resolution is None:
        raise ValueError("resolution is not set; without samples, it must say what size the reference is cropped to")
    return config.resolution


def _write(path: Path, result: dict) -> None:
    make_folder(path.parent)
    write_atomically(path, json.dumps(result, indent=1))
    logger.info(f"written to {path}")
