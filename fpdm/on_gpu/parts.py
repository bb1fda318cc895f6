"""The parts that need a GPU, most important first. Each runs in its own process, so that a failure ends only one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import ROOT, OutOfTime, run_script
from fpdm.on_gpu.gpu_tests import run_tests
from fpdm.records import check_fields, read_object

# Seconds before the deadline at which a script should stop by itself, between two measurements. Training needs more,
# to write a checkpoint.
MEASURING, TRAINING = 30, 60
PATIENCE = 30  # seconds after the deadline until a hanging script is killed
REHEARSAL = (
    "--size", "XS", "--latent", "4,8,8", "--batch-size", 2, "--updates", 2, "--sizes", "XS", "--batch-sizes", 2,
    "--modes", "eager", "--budgets", 24, "--iterations", 2, "--vae", ROOT / "assets" / "fpdm-digits" / "vae",
    "--repeats", 1, "--steps", 1, "--records", 300,
)  # fmt: skip
CIFAR10 = ("--seconds", 240, "--seeds", 1, "--samples", 10_000, "--batch-size", 1000)


class Visit(NamedTuple):
    """One call of the command. out: folder of all files. precision: bf16 or fp16. deadline: on time.monotonic()'s
    clock. images: CIFAR-10's training images, folder or zip. rehearse: use tiny sizes."""

    out: Path
    precision: str
    deadline: float
    images: str | None = None
    rehearse: bool = False


class Outcome(NamedTuple):
    """done: the part is complete. said: a remark for the summary."""

    done: bool
    said: str


class Part(NamedTuple):
    """run: raises OutOfTime if it was stopped at the deadline, another ValueError or OSError if it failed."""

    name: str
    what: str
    run: Callable[[Visit], Outcome]


def parts(visit: Visit) -> list[Part]:
    """All parts in the order in which they run: small measurements that decide the most come first."""
    xl = ("--modes", "eager,compiled")
    found = [
        Part("tests", "tests/gpu", tests),
        measuring("updates", "update compared with a block at XL/2", "--questions", "updates", "--sizes", "XL",
                  "--batch-sizes", "8,64", *xl),
        measuring("cores", "update of three blocks compared with the blocks at XL/2", "--questions", "cores", "--sizes",
                  "XL", *xl),
        measuring("steps", "training steps at XL/2, M = N = 12", "--questions", "steps", "--updates", 12, *xl),
        measuring("sampling", "sampling at XL/2, 140, 280 and 560 block passes, with a VAE", "--questions", "sampling",
                  *xl),
        measuring("published", "comparison with the published form", "--questions", "published", *xl),
        # Steps that were measured before are in this table too, and are not measured again.
        measuring("memory", "allocated and counted memory, M = N = 6 and 12", "--questions", "steps", "--updates",
                  "6,12", "--modes", "eager,checkpointing,compiled"),
        measuring("graphs", "sampling with CUDA graphs at batch 8", "--questions", "sampling", "--batch-size", 8,
                  "--budgets", 280, "--modes", "eager,compiled,graphs", folder="batch-8"),
        measuring("profiles", "where the time goes", "--questions", "profiles", *xl),
        measuring("rates", "data in and out, VAE layouts", "--questions", "rates", "--records",
                  20_000),
    ]  # fmt: skip
    if visit.images is not None:
        found.append(Part("cifar10", "FPDM-S/2 and DiT-S/2 on CIFAR-10", cifar10))
    return found


def tests(visit: Visit) -> Outcome:
    """Run the tests for at most two thirds of the time: a hanging test must not prevent all measurements."""
    now = time.monotonic()
    try:
        return Outcome(True, run_tests(visit.out / "tests.log", now + 2 / 3 * (visit.deadline - now)))
    except OutOfTime as stopped:  # left, not stopped: the tests run first in the next call too
        return Outcome(False, str(stopped))


def measuring(name: str, what: str, *words, folder: str = "batch-64") -> Part:
    """A part that calls benchmark.py; parts with the same batch size share a folder."""

    def run(visit: Visit) -> Outcome:
        progress = visit.out / folder / "progress.json"
        progress.unlink(missing_ok=True)
        tiny = REHEARSAL if visit.rehearse else ()
        try:
            run_script("benchmark.py", *words, *tiny, "--precision", visit.precision, "--out", progress.parent,
                       "--minutes", minutes_left(visit, MEASURING), deadline=visit.deadline,
                       log=visit.out / f"{name}.log", patience=PATIENCE)  # fmt: skip
        except ValueError:
            if not progress.is_file():  # it did not finish; otherwise the file lists what it left out
                raise
        made = read_object(progress)
        check_fields(progress, made, {"left": list[str], "failed": list[str]}, ["left", "failed"])
        said = [f"{len(made['left'])} left, the next is {made['left'][0]}"] if made["left"] else []
        return Outcome(not made["left"], "; ".join(said + [f"left out {case}" for case in made["failed"]]))

    return Part(name, what, run)


def cifar10(visit: Visit) -> Outcome:
    train = "--run.compile true" + ("" if visit.precision == "bf16" else " --run.mixed_precision fp16")
    folder = visit.out / "cifar10"
    run_script("reproduce.py", "--data", "cifar10", "--images", visit.images, *CIFAR10, "--train", train,
               "--precision", visit.precision, "--out", folder, "--minutes", minutes_left(visit, TRAINING),
               deadline=visit.deadline, log=visit.out / "cifar10.log", patience=PATIENCE)  # fmt: skip
    done = (folder / "release.md").is_file()  # the last section
    return Outcome(done, "" if done else "stopped before the deadline; the next call resumes it")


def minutes_left(visit: Visit, before: float) -> float:
    """Minutes until `before` seconds before the deadline."""
    return round(max(visit.deadline - before - time.monotonic(), 0) / 60, 2)
