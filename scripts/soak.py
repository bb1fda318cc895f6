"""The reliability campaign: commands are killed, stopped, starved of disk and fed with bad input, and must lose
nothing (docs/reliability.md). The same command resumes an interrupted campaign."""

import logging
import os
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
        f"{name}: {experiment.about} ({experiment.rounds:,d})" for name, experiment in EXPERIMENTS.items()
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
    logger.info(f"\n{campaign.report()}\n\nreport in {campaign.out / 'report.md'}")
    if lost:
        raise SystemExit(1)


def play(campaign: Campaign, settings: Settings) -> bool:
    """Play the chosen experiments; True if one lost something, after which none is begun."""
    try:
        campaign.material.make()
    except Lost as error:
        raise ValueError(f"{error}") from error
    names = settings.experiments or EXPERIMENTS
    return any(campaign.play(name, settings.rounds or EXPERIMENTS[name].rounds) is not None for name in names)


if __name__ == "__main__":
    cli.run(main)
