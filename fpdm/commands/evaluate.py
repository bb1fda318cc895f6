"""Score images against a reference: Fréchet distances, Inception score, KID, precision and recall.

--make-reference FILE writes the statistics of a reference to a file; --self-test checks the installation.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from fpdm import cli
from fpdm.config import ScoringConfig
from fpdm.evaluation.evaluate import evaluate, make_reference, self_test
from fpdm.evaluation.features import EXTRACTORS


@dataclass
class Settings(ScoringConfig):
    __doc__ = (
        ScoringConfig.__doc__
        + """    samples: folder or zip of images, or an npz with arr_0.
        reference: folder or zip of images (cropped as for training), an npz, or digits; or a file of statistics,
            from --make-reference or ADM's VIRTUAL_*.npz.
        make_reference: write the reference's statistics to this file (.npz) instead of scoring.
        self_test: check the metrics on the reference's features and on Gaussians instead of scoring.
        out: JSON file of the scores; by default score-<features>.json beside the samples.
    """
    )

    samples: str = ""
    reference: str = ""
    make_reference: str | None = None
    self_test: bool = False
    out: str | None = None

    def __post_init__(self):
        super().__post_init__()
        asked = {f"make_reference={self.make_reference}": self.make_reference, "self_test": self.self_test,
                 f"samples={self.samples}": self.samples}  # fmt: skip
        given = [name for name, value in asked.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' with '.join(given)}: only one of them is possible; leave out the others")

    def score_file(self) -> Path:
        samples = Path(self.samples)
        beside = samples if samples.is_dir() else samples.parent
        return Path(self.out) if self.out else beside / f"score-{self.features}.json"


def parser():
    return cli.make_parser(Settings, f"{__doc__}\n--features takes {', '.join(EXTRACTORS)}.")


def main() -> None:
    settings = cli.parse(Settings, parser())
    scoring = {field.name: getattr(settings, field.name) for field in fields(ScoringConfig)}
    if settings.make_reference:
        make_reference(settings.reference, settings.make_reference, **scoring)
    elif settings.self_test:
        self_test(settings.reference, **scoring)
    else:
        evaluate(settings.samples, settings.reference, out=settings.score_file(), **scoring)


def run() -> None:
    cli.run(main)
