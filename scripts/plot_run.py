"""Plot the training curves of one or several runs from their logs, one colour per run."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from fpdm import cli
from fpdm.config import check_choice
from fpdm.evaluation.runs import X_AXES, plot_runs, read_runs

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What to plot.

    Args:
        runs: folders of runs (or their log.jsonl), separated by commas.
        out: file of the picture: PNG, PDF or SVG.
        x: quantity on the x axis: steps, images or hours (of training, computed from the logged rates).
    """

    runs: list[str] = field(default_factory=list)
    out: str = "curves.png"
    x: str = "steps"

    def __post_init__(self):
        check_choice("x", self.x, X_AXES)
        if not self.runs:
            raise ValueError("runs is not set; give the folder of a run, as in --runs results/000-FPDM-XL-2")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    runs = read_runs(settings.runs)
    plot_runs(runs, settings.x, Path(settings.out))
    for run in runs:
        logger.info(f"{run.name}: {len(run.steps)} lines, up to step {run.steps[-1]}")
    logger.info(f"written to {settings.out}")


if __name__ == "__main__":
    cli.run(main)
