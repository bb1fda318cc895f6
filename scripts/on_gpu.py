"""Run all tests and measurements that need a GPU, most important first: tests, cost of training and sampling at XL/2,
memory, CUDA graphs, CIFAR-10. The same command resumes an interrupted run and repeats nothing. Needs no network."""

import logging
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

import fpdm
from fpdm import cli
from fpdm.chain import end_on_sigterm
from fpdm.chain.folder import study_folder
from fpdm.config import check_range, limits
from fpdm.devices import device_peak_tflops, process_state
from fpdm.on_gpu.parts import Visit
from fpdm.on_gpu.visit import resume

logger = logging.getLogger("fpdm")
RESERVE = 15  # seconds for the summary
PACKAGES = ("triton", "torchvision", "timm", "diffusers", "accelerate", "pytest")


@dataclass
class Settings:
    """Output folder, time limit, and what to run.

    Args:
        out: folder for all files; its subfolder home contains the files to take home, under 10 MB.
        minutes: time limit; the same command resumes. If commands are killed after a time, give one minute less.
        images: CIFAR-10's training images in class folders, a folder or a zip, for training and scoring (null to skip
            CIFAR-10).
        rehearse: run everything at tiny sizes, also on a CPU; the numbers are meaningless.
    """

    out: str = "results/on-gpu"
    minutes: float = 25
    images: str | None = None
    rehearse: bool = False

    def __post_init__(self):
        check_range(0, limits.MINUTES, minutes=self.minutes)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    end_on_sigterm()
    settings = cli.parse(Settings, parser())
    started = psutil.Process().create_time()  # the time limit includes the imports
    deadline = time.monotonic() - (time.time() - started) + 60 * settings.minutes - RESERVE
    device, out = process_state().device, Path(settings.out)
    if device.type != "cuda" and not settings.rehearse:
        raise ValueError("rehearse=false: this machine has no CUDA device; run it on one that has, or add --rehearse")
    if settings.images is not None and not Path(settings.images).exists():
        raise ValueError(f"images {settings.images} does not exist; give a folder or zip of images in class folders")
    precision = best_precision(device)
    facts = machine(device, precision)
    with study_folder(out, facts | {"rehearse": settings.rehearse}):
        if settings.rehearse:
            facts = {"REHEARSAL": "tiny sizes; the numbers are meaningless"} | facts
        done = resume(Visit(out, precision, deadline, settings.images, settings.rehearse), facts)
    told = "everything is done" if done else "not everything is done; the same command resumes"
    logger.info(f"{told}; summary in {out / 'summary.md'}, files to take home in {out / 'home'}")


def best_precision(device: torch.device) -> str:
    """bf16 if the device supports it (CPUs do), else fp16."""
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"


def machine(device: torch.device, precision: str) -> dict[str, str]:
    """Facts on which the numbers depend."""
    gpu = device.type == "cuda"
    peak = device_peak_tflops(device, precision, True)
    return {
        "machine": torch.cuda.get_device_name(device) if gpu else f"CPU ({platform.machine()})",
        "peak by the maker": f"{peak:g} TFLOP/s" if peak else "not known",
        "precision": precision,
        "fpdm": fpdm.__version__,
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        **{name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    cli.run(main)
