"""Measure training on one device: the throughput of an FPDM and a DiT with and without torch.compile and gradient
checkpointing, then both trained on images for equal time. Started again, it goes on where it stopped."""

import json
import logging
import platform
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import fpdm
from fpdm import cli
from fpdm.chain import OutOfTime, keep_settings, last_record, run_script, steps_for_equal_time
from fpdm.config import (
    PRECISIONS,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SJFBConfig,
    check_at_least,
    check_choice,
)
from fpdm.data.codec import open_codec
from fpdm.data.images import open_images
from fpdm.data.latents import MANIFEST
from fpdm.data.synthetic import write_random_store
from fpdm.devices import process_state
from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.training.checkpoint import find_checkpoint, step_of
from fpdm.training.describe import expected_memory
from fpdm.training.runlog import latest_run
from fpdm.training.setup import build_network

logger = logging.getLogger("fpdm")
CLASSES = 1000


@dataclass
class Settings:
    """What is measured.

    Args:
        out: folder of everything it makes.
        models: whose throughput is measured, on random latents.
        shape: channels, height and width of these latents.
        batch_size: of the throughput.
        updates: M and N of an FPDM there.
        precision: of both parts, no, bf16 or fp16.
        modes: plain, compile and recompute (gradient checkpointing), which of them to measure.
        steps: of each measurement, after as many to warm up.
        images: zip or folder of images for the second part (null to leave it out).
        configs: of the second part, trained for equal time.
        seconds: training time of each.
        minutes: stop after so many, in good order (null for as long as it takes); the same command goes on.
    """

    out: str = "results/study"
    models: list[str] = field(default_factory=lambda: ["FPDM-XL/2", "DiT-XL/2"])
    shape: list[int] = field(default_factory=lambda: [4, 32, 32])
    batch_size: int = 64
    updates: int = 12
    precision: str = "bf16"
    modes: list[str] = field(default_factory=lambda: ["plain", "compile", "recompute"])
    steps: int = 40
    images: str | None = None
    configs: list[str] = field(
        default_factory=lambda: ["configs/cifar10/fpdm-s-2.yaml", "configs/cifar10/dit-s-2.yaml"]
    )
    seconds: float = 480
    minutes: float | None = None

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)
        check_at_least(1, batch_size=self.batch_size, steps=self.steps, updates=self.updates, seconds=self.seconds)
        for mode in self.modes:
            check_choice("modes", mode, tuple(MODES))


# What each mode adds to train.py's command line.
MODES = {"plain": [], "compile": ["--run.compile"], "recompute": ["--run.gradient_checkpointing"]}


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    out = Path(settings.out)
    if settings.images:
        data_of(settings)  # a mistake there is told now, not after the first part
    out.mkdir(parents=True, exist_ok=True)
    decisive = ("shape", "batch_size", "updates", "precision", "steps", "images", "configs", "seconds")
    keep_settings(out / "settings.json", {name: getattr(settings, name) for name in decisive})
    try:
        measure_throughput(settings, out, deadline)
        if settings.images:
            train_for_equal_time(settings, out, deadline)
    except OutOfTime as error:
        logger.info(f"{error}")
    report = write_report(settings, out)
    logger.info(f"\n{report}\n{out / 'report.md'}")


def measure_throughput(settings: Settings, out: Path, deadline: float | None) -> None:
    """Every model in every mode, into throughput.json."""
    latents = out / "random-latents"
    if not (latents / MANIFEST).exists():
        write_random_store(latents, records=max(1024, 2 * settings.batch_size), shape=settings.shape, classes=CLASSES)
    rows = measured(out)
    for name in settings.models:
        for mode in settings.modes:
            if any((row["model"], row["mode"]) == (name, mode) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                run_script(
                    "train.py", "--model.name", name, "--data.latents", latents, "--run.results", folder,
                    "--sjfb.no_grad", settings.updates, "--sjfb.grad", settings.updates,
                    "--optim.batch_size", settings.batch_size, "--optim.steps", 2 * settings.steps,
                    "--run.log_every", settings.steps, "--run.mixed_precision", settings.precision, *MODES[mode],
                    deadline=deadline,
                )  # fmt: skip
                record = last_record(next(Path(folder).iterdir()))
            if record["step"] < 2 * settings.steps:
                raise OutOfTime("the measurement was cut short; the same command goes on")
            rows.append({"model": name, "mode": mode, "expected_gib": expected(settings, name, mode), **record})
            write_atomically(out / "throughput.json", json.dumps(rows, indent=1))


def measured(out: Path) -> list[dict]:
    path = out / "throughput.json"
    return json.loads(path.read_text()) if path.exists() else []


def expected(settings: Settings, name: str, mode: str) -> float:
    """GiB that the largest step of such a run should need."""
    config = ExperimentConfig(
        model=ModelConfig(name),
        sjfb=SJFBConfig(no_grad=settings.updates, grad=settings.updates),
        optim=OptimConfig(batch_size=settings.batch_size),
        run=RunConfig(mixed_precision=settings.precision, gradient_checkpointing=mode == "recompute"),
    )
    with torch.device("meta"):
        network = build_network(config, settings.shape, CLASSES)
    n, m = (settings.updates, settings.updates) if name.startswith("FPDM") else (0, 0)
    return expected_memory(config, network, settings.batch_size, False, n, m).peak / 2**30


def data_of(settings: Settings) -> DataConfig:
    """What the configs of the second part say of their data; ValueError where that is not enough to encode images."""
    open_images(settings.images)
    experiments = [
        cli.parse(ExperimentConfig, cli.make_parser(ExperimentConfig, ""), ["--config", config])
        for config in settings.configs
    ]
    data = experiments[0].data
    if data.vae is None or data.shape is None:
        raise ValueError(f"configs: {settings.configs[0]} must have data.vae and data.shape, to encode images for it")
    return data


def train_for_equal_time(settings: Settings, out: Path, deadline: float | None) -> None:
    """Each config for the same time, a grid of samples from each, and both curves in one picture."""
    latents = out / "latents"
    data = data_of(settings)
    resolution = data.shape[1] * open_codec(data.vae).downsampling
    run_script("encode_latents.py", "--images", settings.images, "--vae", data.vae, "--resolution", resolution,
               "--mirror", str(data.mirror).lower(), "--out", latents, deadline=deadline)  # fmt: skip
    common = ["--data.latents", latents, "--run.mixed_precision", settings.precision]
    arguments = {name_of(config): ["--config", config, *common] for config in settings.configs}
    steps = steps_for_equal_time(out / "steps.json", settings.seconds, arguments, deadline)
    for name, words in arguments.items():
        run_script("train.py", *words, "--run.results", out / "runs", "--run.name", name, "--run.checkpoint_every",
                   max(steps[name] // 10, 1), "--run.preview_every", 0, "--optim.steps", steps[name],
                   "--run.log_every", max(steps[name] // 100, 1), "--resume", "auto", deadline=deadline)  # fmt: skip
        run = latest_run(str(out / "runs"), name)
        if step_of(find_checkpoint(run)) < steps[name]:
            raise OutOfTime(f"{run} is not at its end; the same command goes on")
        run_script("sample.py", "--ckpt", run, "--budget", 280, "--precision", settings.precision, "--out",
                   out / f"samples-{name}", deadline=deadline)  # fmt: skip
    runs = ",".join(str(latest_run(str(out / "runs"), name)) for name in arguments)
    run_script("plot_run.py", "--runs", runs, "--x", "hours", "--out", out / "curves.png")


def name_of(config: str) -> str:
    return Path(config).stem


def write_report(settings: Settings, out: Path) -> str:
    """report.md: all that is measured so far, and on what."""
    device = process_state().device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows = [
        [
            row["model"],
            row["mode"],
            f"{row['images_per_s']:.4g}",
            f"{row['tflops']:.3g}",
            f"{row['peak_share']:.0%}" if "peak_share" in row else "",
            f"{row['peak_memory_gib']:.2f}",
            f"{row['expected_gib']:.2f}",
        ]
        for row in measured(out)
    ]
    titles = ["model", "mode", "images/s", "TFLOP/s", "of peak", "peak GiB", "expected GiB"]
    parts = ["# Training, measured", markdown_table(titles, rows, 2)]
    if (out / "steps.json").exists():
        parts.append(equal_time_table(settings, out))
    if (out / "curves.png").exists():
        parts.append("![curves](curves.png)")
    parts.append(
        f"{machine}, {settings.precision}, batch {settings.batch_size}, M = N = {settings.updates}; "
        f"{settings.steps} steps each after as many to warm up. fpdm {fpdm.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}. Settings: `{json.dumps(asdict(settings))}`"
    )
    report = "\n\n".join(parts)
    write_atomically(out / "report.md", report + "\n")
    return report


def equal_time_table(settings: Settings, out: Path) -> str:
    """The last losses of the runs that were given equal time."""
    rows = []
    for name, steps in json.loads((out / "steps.json").read_text()).items():
        logs = sorted((out / "runs").glob(f"*-{name}/log.jsonl"))
        if logs and logs[-1].read_text():
            record = last_record(logs[-1].parent)
            numbers = [f"{record['loss']:.4f}", f"{record['images_per_s']:.4g}", f"{record['tflops']:.3g}"]
            rows.append([name, f"{record['step']} of {steps}", *numbers, f"{record['peak_memory_gib']:.2f}"])
    title = f"{settings.seconds:g} s each"
    return markdown_table([title, "steps", "loss", "images/s", "TFLOP/s", "peak GiB"], rows)


if __name__ == "__main__":
    cli.run(main)
