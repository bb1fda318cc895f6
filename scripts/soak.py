"""The reliability campaign: commands are killed, stopped, starved of disk and fed with bad input, and must lose
nothing (docs/reliability.md). The same command resumes an interrupted campaign."""

import logging
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from fpdm import cli
from fpdm.chain import end_on_sigterm
from fpdm.config import check_choice, check_range, limits
from fpdm.locks import only_writer
from fpdm.soak.campaign import Campaign
from fpdm.soak.experiments import EXPERIMENTS
from fpdm.soak.outcome import Lost
from fpdm.soak.preload import preload
from fpdm.soak.report import report

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is tried, and how often.

    Args:
        experiments: names of experiments; all if not given.
        rounds: rounds of each experiment (null for the number of a full campaign, which --help lists).
        seed: seed of the first round; the next round has the next seed.
        length: training steps, and sampled images, of the long runs.
        minutes: time limit; the same command resumes (null for no limit).
        out: folder for journals, the report, and the files of a round that lost something.
    """

    experiments: tuple[str, ...] = ()
    rounds: int | None = None
    seed: int = 0
    length: int = 200_000
    minutes: float | None = None
    out: str = "results/soak"

    def __post_init__(self):
        for name in self.experiments:
            check_choice("experiments", name, tuple(EXPERIMENTS))
        check_range(1, limits.REPEATS, rounds=self.rounds)
        check_range(100, limits.STEPS, length=self.length)
        check_range(0, limits.SEED, seed=self.seed)
        check_range(0, limits.MINUTES, minutes=self.minutes)


def parser():
    listed = "\n".join(
        f"{name}: {experiment.about} ({'all' if callable(experiment.rounds) else format(experiment.rounds, ',d')})"
        for name, experiment in EXPERIMENTS.items()
    )
    return cli.make_parser(Settings, f"{__doc__}\n\nExperiments, with the rounds of a full campaign:\n{listed}")


def main() -> None:
    end_on_sigterm()
    settings = cli.parse(Settings, parser())
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_MININTERVAL": "30"}  # of all processes
    campaign = Campaign(Path(settings.out), settings.seed, deadline, settings.length)
    preload()
    constants.HF_HUB_OFFLINE = True  # names in bad input must not be looked up
    with only_writer(campaign.out):
        lost = play(campaign, settings)
        told = report(campaign, shlex.join(["python", "scripts/soak.py", *sys.argv[1:]]))
    logger.info(f"\n{told}\n\nreport in {campaign.out / 'report.md'}")
    if lost:
        raise SystemExit(1)


def play(campaign: Campaign, settings: Settings) -> bool:
    """Play the chosen experiments; True if one lost something, after which none is begun."""
    names = settings.experiments or EXPERIMENTS
    try:
        return any(campaign.play(name, settings.rounds) is not None for name in names)
    except Lost as error:  # of what a campaign needs before its rounds
        raise ValueError(f"{error}") from error


if __name__ == "__main__":
    cli.run(main)
