"""How fast latents are drawn, eager and compiled: images per second at each budget, with random weights."""

import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fpdm import cli
from fpdm.config import PRECISIONS, check_at_least, check_choice
from fpdm.devices import check_precision, device_peak_tflops, peak_memory, process_state
from fpdm.diffusion import Diffusion
from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.loading import denoiser
from fpdm.models import FixedPointDiT, build_model, compile_layers, forward_cost
from fpdm.sampling.plan import Plan, make_plan
from fpdm.sampling.sampler import sample
from fpdm.sampling.starts import Starts

logger = logging.getLogger("fpdm")
MODES = ("eager", "compiled")
LATENT = (4, 32, 32)


@dataclass
class Settings:
    """What is timed.

    Args:
        models: names of networks, on latents of 4x32x32.
        modes: eager, compiled.
        budgets: block passes per image.
        iterations: per timestep, of FPDMs.
        batch_size: images at a time.
        precision: no, bf16 or fp16.
        repeats: timed runs, of which the median counts; one with few timesteps before them warms up.
        threads: of torch's arithmetic (null for its own choice).
        out: JSON file for the results (null for none).
    """

    models: tuple[str, ...] = ("FPDM-XL/2", "DiT-XL/2")
    modes: tuple[str, ...] = MODES
    budgets: tuple[int, ...] = (140, 280, 560)
    iterations: int = 8
    batch_size: int = 64
    precision: str = "no"
    repeats: int = 3
    threads: int | None = None
    out: str | None = None

    def __post_init__(self):
        for mode in self.modes:
            check_choice("modes", mode, MODES)
        check_choice("precision", self.precision, PRECISIONS)
        check_at_least(1, iterations=self.iterations, batch_size=self.batch_size, repeats=self.repeats)


def parser():
    return cli.make_parser(Settings, __doc__)


@torch.inference_mode()
def main() -> None:
    settings = cli.parse(Settings, parser())
    device = process_state().device
    check_precision("precision", settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.out:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)  # a mistake there is told now
    rows = []
    for name in settings.models:
        for mode in settings.modes:
            rows += time_model(settings, name, mode, device)
    head = ["model", "mode", "block passes", "timesteps", "images/s", "TFLOP/s", "share of peak", "GiB", "first run, s"]
    table = markdown_table(head, [list(map(cell, row.values())) for row in rows], text_columns=2)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    facts = {"machine": f"{machine}, {platform.machine()}", "torch": torch.__version__, "settings": asdict(settings)}
    logger.info(f"\n{table}\n\n{facts['machine']}, torch {torch.__version__}")
    if settings.out:
        write_atomically(Path(settings.out), json.dumps(facts | {"rows": rows}, indent=1))


def time_model(settings: Settings, name: str, mode: str, device: torch.device) -> list[dict]:
    """One row for each budget; the first run, with compilation, is timed by itself."""
    torch.manual_seed(0)
    model = build_model(name).to(device).eval()
    iterations = settings.iterations if isinstance(model, FixedPointDiT) else None
    cost, peak = forward_cost(model), device_peak_tflops(device, settings.precision, tf32=False)
    torch.compiler.reset()
    if mode == "compiled":
        compile_layers(model)
    draw = drawing(settings, model, device)
    first = timed(lambda: draw(make_plan(cost.explicit_blocks, steps=2, iterations=iterations)), device)
    rows = []
    for budget in settings.budgets:
        plan = make_plan(cost.explicit_blocks, budget=budget, iterations=iterations)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = statistics.median(timed(lambda plan=plan: draw(plan), device) for _ in range(settings.repeats))
        rate = settings.batch_size / seconds
        speed = rate * cost.total_flops(plan.iterations) / 1e12
        rows.append(
            {
                "model": name,
                "mode": mode,
                "block_passes": plan.block_passes,
                "timesteps": len(plan.steps),
                "images_per_second": rate,
                "tflops_per_second": speed,
                "share_of_peak": speed / peak if peak else None,
                "peak_gib": peak_memory(device) / 2**30 if device.type == "cuda" else None,
                "first_run_seconds": first,
            }
        )
        logger.info(f"{name}, {mode}, {plan.block_passes} block passes: {rate:.3g} images/s")
    return rows


def drawing(settings: Settings, model: torch.nn.Module, device: torch.device) -> Callable[[Plan], torch.Tensor]:
    """plan -> latents of one batch, solutions reused, without guidance and without decoding."""
    noise = torch.randn(settings.batch_size, *LATENT, device=device)
    labels = torch.arange(settings.batch_size, device=device) % model.num_classes
    denoise, diffusion = denoiser(model, settings.precision), Diffusion()

    def draw(plan: Plan) -> torch.Tensor:
        starts = Starts() if isinstance(model, FixedPointDiT) else None
        return sample(denoise, diffusion, plan, noise, labels, starts=starts)

    return draw


def timed(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds until the result is there."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def cell(value: str | float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.run(main)
