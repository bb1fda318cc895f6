"""Measure costs on this machine, with one table per question: an update compared with blocks, training steps, memory,
the published form of the network, sampling, (n, m) per process, data input and output, time by kind of operation,
the choices of newer recipes, and the page of demo.py. The same command resumes an interrupted run."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

import fpdm
from fpdm import cli
from fpdm.benchmarks.answers import Progress, answer
from fpdm.benchmarks.choices import choices
from fpdm.benchmarks.cores import cores
from fpdm.benchmarks.counted_memory import memory
from fpdm.benchmarks.dial import dial
from fpdm.benchmarks.profiles import profiles
from fpdm.benchmarks.published_form import published_form
from fpdm.benchmarks.ranks import ranks
from fpdm.benchmarks.rates import rates
from fpdm.benchmarks.sampling import sampling
from fpdm.benchmarks.steps import steps
from fpdm.benchmarks.timing import Bench, Question
from fpdm.benchmarks.updates import updates
from fpdm.chain import end_on_sigterm
from fpdm.chain.folder import study_folder
from fpdm.config import check_choice, check_range, limits
from fpdm.data.codec import PIXELS, Codec, PixelCodec, VAECodec, open_codec
from fpdm.devices import allow_tf32, check_precision, process_state
from fpdm.files import write_atomically
from fpdm.injections import INJECTIONS
from fpdm.models.sizes import SIZES
from fpdm.precision import PRECISIONS

logger = logging.getLogger("fpdm")
QUESTIONS = ("updates", "cores", "memory", "steps", "published", "sampling", "ranks", "rates", "profiles",
             "choices", "dial")  # fmt: skip
SD_VAE = {  # the usual VAE of latent diffusion, 8 times smaller
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


@dataclass
class Settings:
    """What is measured, and at which sizes.

    Args:
        out: folder for the tables, their numbers as JSON, and the profiles' picture and traces.
        questions: updates, cores, memory, steps, published, sampling, ranks, rates, profiles,
            choices, dial; all if not given.
        size: size of the networks: XS, S, B, L or XL.
        patch: patch size in latent pixels; size XL and patch 2 give FPDM-XL/2.
        latent: channels, height and width of the latents; height and width must be equal.
        batch_size: batch size of training steps and sampling.
        memory_batch_size: batch size of the counted memory.
        updates: values of M = N of S-JFB; each is measured at the mean and at the largest step.
        published_updates: N and M of S-JFB for the comparison with the published form (the largest of updates if not
            given).
        sizes: sizes of the networks for the comparison of an update with a block.
        batch_sizes: batch sizes for that comparison; the last two also for reading latents, and the middle one for
            updates of several blocks.
        core_depth: number of blocks in an update of several blocks.
        injections: injections for which such an update is measured.
        modes: eager, compiled, checkpointing (for training steps), graphs (CUDA graphs, for sampling).
        budgets: block passes of the sampling runs.
        iterations: iterations per timestep of the sampling runs.
        vae: folder or Hub id of the VAE, or pixels for none (null for a VAE of the usual size with random weights).
        records: number of latents in the store for reading.
        processes: numbers of processes for the simulation of a separate (n, m) per process.
        precision: precision of the arithmetic: no, bf16 or fp16.
        repeats: number of measurements, of which the median is taken.
        steps: training steps per measurement.
        threads: number of torch's threads (null for torch's default).
        minutes: time limit; the run stops between two measurements, and the same command resumes (null for no limit).
    """

    out: str = "results/benchmark"
    questions: tuple[str, ...] = ()
    size: str = "XL"
    patch: int = 2
    latent: tuple[int, int, int] = (4, 32, 32)
    batch_size: int = 64
    memory_batch_size: int = 64
    updates: tuple[int, ...] = (3, 6, 12)
    published_updates: tuple[int, int] | None = None
    sizes: tuple[str, ...] = ("S", "B", "XL")
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    core_depth: int = 3
    injections: tuple[str, ...] = tuple(INJECTIONS)
    modes: tuple[str, ...] = ("eager", "compiled", "checkpointing")
    budgets: tuple[int, ...] = (140, 280, 560)
    iterations: int = 8
    vae: str | None = None
    records: int = 100_000
    processes: tuple[int, ...] = (2, 8, 64)
    precision: str = "no"
    repeats: int = 5
    steps: int = 10
    threads: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        self._check_ranges()
        self.questions = self.questions or QUESTIONS
        for name in self.questions:
            check_choice("questions", name, QUESTIONS)
        for mode in self.modes:
            check_choice("modes", mode, ("eager", "compiled", "checkpointing", "graphs"))
        for injection in self.injections:
            check_choice("injections", injection, INJECTIONS)
        check_choice("precision", self.precision, PRECISIONS)
        for size in (self.size, *self.sizes):
            check_choice("size", size, tuple(SIZES))
        lists = {"updates": self.updates, "sizes": self.sizes, "batch_sizes": self.batch_sizes, "modes": self.modes,
                 "budgets": self.budgets, "processes": self.processes, "latent": self.latent,
                 "injections": self.injections}  # fmt: skip
        for name, values in lists.items():
            if not values:
                raise ValueError(f"{name}={values}: give at least one")
        if self.latent[1] != self.latent[2] or self.latent[1] % self.patch:
            raise ValueError(
                f"latent={self.latent}: height and width must be equal, and multiples of patch={self.patch}"
            )

    def _check_ranges(self) -> None:
        check_range(1, limits.LATENT, patch=self.patch, latent=self.latent)
        check_range(1, limits.BATCH, batch_size=self.batch_size, memory_batch_size=self.memory_batch_size)
        check_range(1, limits.BATCH, batch_sizes=self.batch_sizes)
        check_range(1, limits.TRAINING_UPDATES, updates=self.updates)
        check_range(0, limits.TRAINING_UPDATES, published_updates=self.published_updates)
        check_range(1, limits.PASSES, budgets=self.budgets)
        check_range(1, limits.ITERATIONS, iterations=self.iterations)
        check_range(1, limits.DEPTH, core_depth=self.core_depth)
        check_range(1, limits.RECORDS, records=self.records)
        check_range(1, limits.PROCESSES, processes=self.processes)
        check_range(1, limits.REPEATS, repeats=self.repeats)
        check_range(1, limits.STEPS, steps=self.steps)
        check_range(1, limits.WORKERS, threads=self.threads)
        check_range(0, limits.MINUTES, minutes=self.minutes)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    end_on_sigterm()
    settings = cli.parse(Settings, parser())
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    device, out = process_state().device, Path(settings.out)
    check_precision("precision", settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # for train.py
    allow_tf32(True)  # the default of train.py
    codec = open_decoder(settings, device) if {"sampling", "rates"} & set(settings.questions) else PixelCodec()
    decisive = {
        "machine": machine(device), "fpdm": fpdm.__version__, "torch": torch.__version__, "vae": settings.vae,
        "precision": settings.precision, "repeats": settings.repeats,
    }  # fmt: skip
    bench, progress = Bench(device, settings.precision, settings.repeats), Progress([], [])
    with study_folder(out, decisive):
        for name in settings.questions:
            answer(bench, ask(name, settings, codec, out), name, out, deadline, progress)
        if progress.left:
            logger.info(f"time limit reached, {len(progress.left)} cases are left; the same command resumes")
        write_report(settings, device, out)
        write_atomically(out / "progress.json", json.dumps(progress._asdict(), indent=1))
    logger.info(f"report in {out / 'report.md'}")
    if progress.failed:
        raise ValueError("left out: " + "; ".join(progress.failed))


def open_decoder(settings: Settings, device: torch.device) -> Codec:
    """The given VAE, or one of the usual size with random weights, which takes the same time."""
    if settings.vae is not None:
        codec = PixelCodec() if settings.vae == PIXELS else open_codec(settings.vae, device)
        if codec.channels != settings.latent[0]:
            raise ValueError(f"latent={settings.latent}: vae {settings.vae} has {codec.channels} latent channels")
        return codec
    if settings.latent[0] != SD_VAE["latent_channels"]:
        raise ValueError(f"vae is not set, and the default VAE has {SD_VAE['latent_channels']} latent channels, not "
                         f"{settings.latent[0]}; give a VAE, or vae=pixels")  # fmt: skip
    with device:
        return VAECodec(AutoencoderKL(**SD_VAE), "random weights")


def ask(name: str, s: Settings, codec: Codec, out: Path) -> Question:
    """A question at the sizes given by the settings."""
    fpdm_name, dit_name, compiled = f"FPDM-{s.size}/{s.patch}", f"DiT-{s.size}/{s.patch}", "compiled" in s.modes
    tokens = (s.latent[1] // s.patch) ** 2
    modes = tuple(mode for mode in s.modes if mode in ("eager", "compiled"))
    training = tuple(mode for mode in s.modes if mode != "graphs")
    sampled = tuple(mode for mode in s.modes if mode != "checkpointing")
    largest = (max(s.updates), max(s.updates))
    ways: dict[str, Callable[[], Question]] = {
        "updates": lambda: updates(s.sizes, s.batch_sizes, tokens, modes),
        "cores": lambda: cores(
            s.sizes, s.injections, s.core_depth, s.batch_sizes[len(s.batch_sizes) // 2], tokens, modes
        ),
        "memory": lambda: memory(s.size, s.patch, s.latent, s.memory_batch_size, s.updates),
        "steps": lambda: steps(s.size, s.patch, s.latent, s.batch_size, s.updates, training, s.steps),
        "published": lambda: published_form(
            fpdm_name, s.latent, s.batch_size, s.published_updates or largest, compiled, s.budgets[0], s.iterations
        ),
        "sampling": lambda: sampling(
            (fpdm_name, dit_name), s.latent, s.batch_size, sampled, s.budgets, s.iterations, codec
        ),
        "ranks": lambda: ranks(fpdm_name, s.latent, s.batch_size, s.updates, s.processes),
        "rates": lambda: rates(
            s.records, s.latent, s.batch_sizes[-2:], s.batch_size, s.latent[1] * codec.downsampling, s.precision, codec
        ),
        "profiles": lambda: profiles(
            (dit_name, fpdm_name), s.latent, s.batch_size, largest, s.budgets[0], s.iterations, modes, out
        ),
        "choices": lambda: choices(s.size, s.patch, s.latent, s.batch_size, max(s.updates), modes, s.steps),
        "dial": lambda: dial(s.budgets, s.iterations),
    }  # fmt: skip
    return ways[name]()


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}), {torch.get_num_threads()} threads"


def write_report(settings: Settings, device: torch.device, out: Path) -> None:
    """Write a report with all existing tables."""
    sections = [path.read_text() for name in QUESTIONS if (path := out / f"{name}.md").is_file()]
    foot = (
        f"{machine(device)}, precision {settings.precision}, medians of {settings.repeats}; fpdm {fpdm.__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}.\n"
    )
    write_atomically(out / "report.md", "\n\n".join(["# Measured costs\n", *sections, foot]))


if __name__ == "__main__":
    cli.run(main)
