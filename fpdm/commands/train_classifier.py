"""Train a classifier on labelled images, by whose features images are then compared (evaluate.py --features
classifier). A tenth of the images, chosen by a hash of their names, is held out to measure its accuracy."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fpdm import cli
from fpdm.data.images import open_images
from fpdm.devices import process_state
from fpdm.evaluation.classifier_training import ClassifierConfig, train_classifier
from fpdm.files import check_new

logger = logging.getLogger("fpdm")


@dataclass
class Settings(ClassifierConfig):
    __doc__ = (
        ClassifierConfig.__doc__
        + """    images: folder or zip of images in class folders, or digits.
        out: folder for the classifier.
    """
    )

    images: str = "digits"
    out: str = "results/classifier"


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    check_new(Path(settings.out))
    model = train_classifier(open_images(settings.images), settings, process_state().device)
    model.save(settings.out)
    accuracy = ", ".join(f"{share:.1%} at {size} pixels" for size, share in model.facts.accuracy.items())
    logger.info(f"{settings.out}: accuracy on held-out images {accuracy}")


def run() -> None:
    """The command fpdm-train-classifier: main(), with one-line error messages."""
    cli.run(main)
