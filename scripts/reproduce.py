"""The paper's tables and figures in small, on real data: each a target that trains what it needs, draws, scores
and writes its section of the report. Started again, it goes on where it stopped."""

import logging
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import fpdm
from fpdm import cli
from fpdm.chain import OutOfTime, keep_settings
from fpdm.config import check_at_least, check_choice
from fpdm.devices import process_state
from fpdm.files import write_atomically
from fpdm.reproduction.experiments import Laboratory
from fpdm.reproduction.targets import TARGETS

logger = logging.getLogger("fpdm")
DATA = ("digits",)


@dataclass
class Settings:
    """What is reproduced, and how long it may take.

    Args:
        data: digits.
        out: folder of everything it makes.
        targets: which of tab1, tab3, tab4, tab5, fig4, fig5, fig6, fig7, opponents, weighting, memorisation.
        seconds: training time of each model, on this machine.
        seeds: training seeds of each model.
        images: images drawn for each score.
        batch_size: images drawn at a time.
        minutes: stop after so many; the same command goes on (null for no limit).
        vae_steps: training steps of the VAE.
        train: further arguments of train.py for all models, as one text; a rehearsal's small sizes.
    """

    data: str = "digits"
    out: str = "results/reproduce-digits"
    targets: tuple[str, ...] = tuple(TARGETS)
    seconds: float = 90
    seeds: int = 3
    images: int = 1000
    batch_size: int = 250
    minutes: float | None = None
    vae_steps: int = 800
    train: str = ""

    def __post_init__(self):
        check_choice("data", self.data, DATA)
        for target in self.targets:
            check_choice("targets", target, tuple(TARGETS))
        check_at_least(1, seconds=self.seconds, seeds=self.seeds, batch_size=self.batch_size, vae_steps=self.vae_steps)
        check_at_least(65, images=self.images)  # the features have 64 dimensions


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    started, out = time.monotonic(), Path(settings.out)
    deadline = None if settings.minutes is None else started + 60 * settings.minutes
    out.mkdir(parents=True, exist_ok=True)
    decisive = ("data", "seconds", "seeds", "images", "vae_steps", "train")
    keep_settings(out / "settings.json", {name: getattr(settings, name) for name in decisive})
    try:
        laboratory = Laboratory(out, settings.seconds, settings.seeds, settings.images, settings.batch_size, deadline,
                                settings.vae_steps, tuple(settings.train.split()))  # fmt: skip
        for position, target in enumerate(settings.targets, 1):
            section = TARGETS[target](laboratory)
            write_atomically(out / f"{target}.md", f"## {section.title}\n\n{section.text}\n")
            done = f"{position} of {len(settings.targets)}, {time.monotonic() - started:.0f} s"
            logger.info(f"\n[{done}] {section.title}\n\n{section.text}")
    except OutOfTime as stopped:
        logger.info(f"{stopped}")
    write_report(settings, out)
    logger.info(f"report in {out / 'report.md'}")


def write_report(settings: Settings, out: Path) -> None:
    """All sections that are there."""
    sections = [path.read_text() for target in TARGETS if (path := out / f"{target}.md").is_file()]
    device = process_state().device
    head = (
        f"# The paper's tables and figures on {settings.data}\n\n{settings.seeds} training seeds, "
        f"{settings.seconds:g} s of training each; sampling seed i for the i-th; mean ± standard deviation.\n"
    )
    foot = (
        f"fpdm {fpdm.__version__}, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, Python {platform.python_version()}.\n"
    )
    write_atomically(out / "report.md", "\n\n".join([head, *sections, foot]))


if __name__ == "__main__":
    cli.run(main)
