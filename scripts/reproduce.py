"""The paper's tables and figures at small scale, on real data. Each is a target, which trains the models it needs,
samples, scores, and writes its section of the report. The same command resumes an interrupted run."""

import logging
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import fpdm
from fpdm import cli
from fpdm.chain import OutOfTime, end_on_sigterm
from fpdm.chain.folder import study_folder
from fpdm.config import check_choice, check_range, limits
from fpdm.devices import allow_tf32, process_state
from fpdm.files import write_atomically
from fpdm.precision import PRECISIONS
from fpdm.reproduction import cifar10, targets
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.bench_report import SECTIONS
from fpdm.reproduction.digits import digits
from fpdm.reproduction.experiments import Laboratory

logger = logging.getLogger("fpdm")
DATA = {"digits": targets.TARGETS, "cifar10": cifar10.TARGETS, "cifar10-small": SECTIONS}
SECONDS = {"digits": 75, "cifar10": 240, "cifar10-small": 2400}
STUDIES = ("longer", "ladder", "recipes", "starts", "core", "asset")  # long, so only on request
FEATURES = {"digits": 64, "cifar10": 128, "cifar10-small": 128}  # dimensions
SAMPLES = {"digits": 1000, "cifar10": 5000, "cifar10-small": 5000}


@dataclass
class Settings:
    """What is reproduced, and how long it may take.

    Args:
        data: digits (no download, two cores), cifar10 (for a GPU), or cifar10-small (for two cores, hours).
        images: for both kinds of cifar10, the training images in class folders; a folder or a zip.
        out: folder for all files (results/reproduce-<data> if not given).
        targets: for digits tab1, tab3, tab4, tab5, fig4, fig5, fig6, fig7, opponents, weighting, memorisation,
            length, longer, ladder, recipes, starts, asset; for both kinds of cifar10 yardstick, trials, convergence,
            quality, training, claims, spread, final, grids, core, asset, and for cifar10 release; if not given, all but
            longer, ladder, recipes, starts, core and asset, which train further networks for hours.
        seconds: training time of each model, on this machine (75; for cifar10 240, for cifar10-small 2400).
        trial_seconds: for cifar10-small, training time of each trial.
        seeds: for digits, number of training seeds of each model.
        samples: number of sampled images for each score (1000; for both kinds of cifar10 5000).
        precision: precision of sampling: no, bf16 or fp16.
        batch_size: images per sampling batch.
        minutes: time limit; the same command resumes (null for no limit).
        vae_steps: training steps of the VAE.
        jobs: trainings at a time, and scores where the data is cifar10. They share the threads evenly, and the numbers
            of steps are measured in this way.
        train: further arguments of train.py for all models, as one string, for example for a small rehearsal.
    """

    data: str = "digits"
    images: str | None = None
    out: str | None = None
    targets: tuple[str, ...] = ()
    seconds: float | None = None
    trial_seconds: float = 300
    seeds: int = 3
    samples: int | None = None
    precision: str = "no"
    batch_size: int = 250
    minutes: float | None = None
    vae_steps: int = 800
    jobs: int = 1
    train: str = ""

    def __post_init__(self):
        check_choice("data", self.data, tuple(DATA))
        check_choice("precision", self.precision, PRECISIONS)
        if (self.data == "digits") != (self.images is None):
            raise ValueError(f"images={self.images} with data={self.data}: cifar10 needs images, digits has its own")
        self.seconds, self.samples = self.seconds or SECONDS[self.data], self.samples or SAMPLES[self.data]
        self.targets = self.targets or tuple(name for name in DATA[self.data] if name not in STUDIES)
        for target in self.targets:
            check_choice("targets", target, tuple(DATA[self.data]))
        check_range(0.1, limits.SECONDS, seconds=self.seconds, trial_seconds=self.trial_seconds)
        check_range(1, limits.REPEATS, seeds=self.seeds)
        check_range(FEATURES[self.data] + 1, limits.SAMPLES, samples=self.samples)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(0, limits.MINUTES, minutes=self.minutes)
        check_range(1, limits.STEPS, vae_steps=self.vae_steps)
        check_range(1, limits.WORKERS, jobs=self.jobs)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    end_on_sigterm()
    settings = cli.parse(Settings, parser())
    started, out = time.monotonic(), Path(settings.out or f"results/reproduce-{settings.data}")
    deadline = None if settings.minutes is None else started + 60 * settings.minutes
    allow_tf32(True)  # as train.py and sample.py do
    decisive = ("data", "seconds", "trial_seconds", "seeds", "samples", "precision", "vae_steps", "jobs", "train")
    with study_folder(out, {name: getattr(settings, name) for name in decisive}):
        try:
            bench = open_bench(settings, out, deadline)
            for position, target in enumerate(settings.targets, 1):
                section = DATA[settings.data][target](bench)
                write_atomically(out / f"{target}.md", f"## {section.title}\n\n{section.text}\n")
                done = f"{position} of {len(settings.targets)}, {time.monotonic() - started:.0f} s"
                logger.info(f"\n[{done}] {section.title}\n\n{section.text}")
        except OutOfTime as stopped:
            logger.info(f"{stopped}")
        write_report(settings, out)
    logger.info(f"report in {out / 'report.md'}")


def open_bench(settings: Settings, out: Path, deadline: float | None) -> Laboratory | Bench:
    """What trains and scores the models of this data set."""
    train = tuple(settings.train.split())
    if settings.data != "digits":
        subject = cifar10.SMALL if settings.data == "cifar10-small" else cifar10.FULL
        return Bench(subject, settings.images, out, settings.seconds, settings.trial_seconds, settings.samples,
                     settings.batch_size, settings.jobs, deadline, train, settings.precision)  # fmt: skip
    return Laboratory(digits(settings.vae_steps), out, settings.seconds, settings.seeds, settings.samples,
                      settings.batch_size, deadline, train, settings.precision, settings.jobs)  # fmt: skip


def write_report(settings: Settings, out: Path) -> None:
    """Write a report with all existing sections."""
    sections = [path.read_text() for target in DATA[settings.data] if (path := out / f"{target}.md").is_file()]
    device = process_state().device
    head = (
        f"# The paper's tables and figures on {settings.data}\n\n{settings.seeds} training seeds, "
        f"{settings.seconds:g} s per training unless stated otherwise. Model i is sampled with seed i. Scores are mean "
        "± standard deviation over the training seeds.\n"
    )
    foot = (
        f"fpdm {fpdm.__version__}, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, Python {platform.python_version()}.\n"
    )
    write_atomically(out / "report.md", "\n\n".join([head, *sections, foot]))


if __name__ == "__main__":
    cli.run(main)
