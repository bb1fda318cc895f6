"""Largest error of each deterministic solver on Gaussian data with a known exact flow, by number of model calls."""

import logging
from dataclasses import dataclass

from fpdm import cli
from fpdm.config import check_range, limits
from fpdm.evaluation.analytic import solver_error
from fpdm.evaluation.tables import markdown_table
from fpdm.sampling.solvers import SOLVERS

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is measured.

    Args:
        calls: numbers of model calls; odd, because of solvers with two calls per step.
    """

    calls: tuple[int, ...] = (5, 9, 19, 39, 79)

    def __post_init__(self):
        for calls in self.calls:
            check_range(1, limits.TIMESTEPS, calls=calls)
            if calls % 2 == 0:
                raise ValueError(f"calls={calls}: give an odd number (two calls per step, one for the last step)")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    names = [name for name, solver in SOLVERS.items() if not solver.random]
    rows = []
    for calls in settings.calls:
        steps = {name: (calls + 1) // 2 if SOLVERS[name].spacing.two_calls else calls for name in names}
        rows.append([str(calls), *(f"{solver_error(name, steps[name]):.4f}" for name in names)])
    logger.info(markdown_table(["model calls", *(f"`{name}`" for name in names)], rows, text_columns=0))


if __name__ == "__main__":
    cli.run(main)
