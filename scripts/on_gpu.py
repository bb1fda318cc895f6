"""Everything that this project wants of a GPU, in order of worth: its tests, what training and sampling cost at XL/2,
memory, CUDA graphs, CIFAR-10. Given again, it resumes where it stopped, and does nothing twice. Needs no network."""

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
from fpdm.chain import end_on_sigterm, keep_settings
from fpdm.config import check_range, limits
from fpdm.devices import device_peak_tflops, process_state
from fpdm.on_gpu.parts import Visit
from fpdm.on_gpu.visit import resume

logger = logging.getLogger("fpdm")
RESERVE = 15  # seconds for the summary
PACKAGES = ("triton", "torchvision", "timm", "diffusers", "accelerate", "pytest")


@dataclass
class Settings:
    """How long, and where to.

    Args:
        out: folder of everything it makes; what is to be brought home, under 10 MB, is in its home folder.
        minutes: stop after so many, the same command resumes; leave a minute to what limits the command.
        images: CIFAR-10's training images in class folders, as a folder or zip, to train and score on (null to leave
            that out).
        rehearse: everything at tiny sizes, also on a CPU; its numbers mean nothing.
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
    started = psutil.Process().create_time()  # imports take their time, which counts where a command is limited
    deadline = time.monotonic() - (time.time() - started) + 60 * settings.minutes - RESERVE
    device, out = process_state().device, Path(settings.out)
    if device.type != "cuda" and not settings.rehearse:
        raise ValueError("rehearse=false: this machine has no CUDA device; run it on one that has, or add --rehearse")
    if settings.images is not None and not Path(settings.images).exists():
        raise ValueError(f"images {settings.images} does not exist; give a folder or zip of images in class folders")
    precision = best_precision(device)
    out.mkdir(parents=True, exist_ok=True)
    facts = machine(device, precision)
    keep_settings(out / "settings.json", facts | {"rehearse": settings.rehearse})
    if settings.rehearse:
        facts = {"REHEARSAL": "tiny sizes; the numbers mean nothing"} | facts
    done = resume(Visit(out, precision, deadline, settings.images, settings.rehearse), facts)
    told = "everything is done" if done else "the same command resumes with what is left"
    logger.info(f"{told}; {out / 'summary.md'}, and what to bring home in {out / 'home'}")


def best_precision(device: torch.device) -> str:
    """bf16 where the device has it (as CPUs do), else fp16."""
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"


def machine(device: torch.device, precision: str) -> dict[str, str]:
    """What the numbers depend on."""
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
