"""Training steps of train.py on random latents, measured from its log."""

import statistics
import tempfile
from itertools import product
from pathlib import Path

from fpdm.benchmarks.counted_memory import GIB, STEPS, iterations_of, label_of
from fpdm.benchmarks.timing import Bench, Question, alternate, matrix_product
from fpdm.chain import run_script
from fpdm.data.synthetic import write_random_store
from fpdm.evaluation.tables import markdown_table
from fpdm.models import build_model
from fpdm.records import read_lines
from fpdm.training.step_memory import step_memory

CLASSES = 1000
# What each mode adds to train.py's command line.
MODES = {"eager": [], "compiled": ["--run.compile"], "checkpointing": ["--run.gradient_checkpointing"]}


def steps(
    size: str, patch: int, latent: tuple[int, int, int], batch: int, updates: tuple[int, ...], modes: tuple[str, ...],
    length: int,
) -> Question:  # fmt: skip
    """updates: M = N. Every step has the mean n and m, rounded up, or the largest. length: steps per measurement."""
    kinds = [{"family": "DiT"}]
    kinds += [{"family": "FPDM", "updates": k, "step": step} for k in updates for step in STEPS]
    common = {"size": size, "patch": patch, "latent": list(latent), "batch": batch, "length": length}
    cases = [common | {"mode": mode} | kind for mode, kind in product(modes, kinds)]
    return Question("A training step", cases, measure, table)


def measure(
    bench: Bench, size: str, patch: int, latent: list[int], batch: int, length: int, mode: str, family: str,
    updates: int = 0, step: str = "",
) -> dict:  # fmt: skip
    n, m = iterations_of(updates, step) if updates else (0, 0)
    sjfb = ["--sjfb.variant", "multi-step", "--sjfb.no_grad", n, "--sjfb.grad", m] if updates else []
    peaks = [product_rate(bench)]
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder) / "latents"
        write_random_store(latents, records=max(1024, 2 * batch), shape=latent, classes=CLASSES)
        run_script(
            "train.py", "--model.name", f"{family}-{size}/{patch}", "--data.latents", latents,
            "--run.results", f"{folder}/runs", "--run.mixed_precision", bench.precision, "--run.log_every", length,
            "--optim.batch_size", batch, "--optim.steps", (1 + bench.repeats) * length, *sjfb, *MODES[mode],
        )  # fmt: skip
        (run,) = (Path(folder) / "runs").glob("*/log.jsonl")
        kinds = {"images_per_s": float, "tflops": float, "peak_memory_gib": float}
        first, *records = read_lines(run, kinds)
    model = build_model(f"{family}-{size}/{patch}", in_channels=latent[0], input_size=latent[1], num_classes=CLASSES)
    sizes = {"iterations": m, "iterations_no_grad": n} if updates else {}
    counted = step_memory(model, batch, bench.precision != "no", mode == "checkpointing", **sizes)
    peaks.append(product_rate(bench))
    images = statistics.median(record["images_per_s"] for record in records)
    return {
        "images_per_s": images,
        "first_s": length * batch * (1 / first["images_per_s"] - 1 / images),
        "tflops": statistics.median(record["tflops"] for record in records),
        "peak_tflops": statistics.mean(peaks),
        "counted_gib": counted.peak / GIB,
        "measured_gib": records[-1]["peak_memory_gib"],
        "reserved_gib": records[-1].get("peak_reserved_gib"),
    }


def product_rate(bench: Bench) -> float:
    """TFLOP/s of a large matrix product, measured now."""
    multiply, flops = matrix_product(bench)
    return flops / alternate(bench, {"peak": multiply})["peak"].median / 1e12


def table(rows: list[dict]) -> str:
    head = ["", "step", "mode", "ms/step", "images/s", "TFLOP/s", "share of matrix-product peak", "counted GiB",
            "peak GiB", "reserved GiB", "warm-up, s"]  # fmt: skip
    body = [
        [
            label_of(row), row.get("step", ""), row["mode"], f"{1e3 * row['batch'] / row['images_per_s']:.4g}",
            f"{row['images_per_s']:.4g}", f"{row['tflops']:.3g}", f"{row['tflops'] / row['peak_tflops']:.0%}",
            f"{row['counted_gib']:.2f}", f"{row['measured_gib']:.2f}",
            "" if row["reserved_gib"] is None else f"{row['reserved_gib']:.2f}", f"{max(row['first_s'], 0):.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    if rows[0]["reserved_gib"] is not None:  # only on a GPU; on a CPU, the peak is that of the whole process
        head.append("peak / counted")
        body = [[*line, f"{allocated_share(row):.2f}"] for line, row in zip(body, rows, strict=True)]
    return f"Batch {rows[0]['batch']}, latents {rows[0]['latent']}.\n\n{markdown_table(head, body, 3)}"


def allocated_share(row: dict) -> float:
    """Measured peak of a step on a GPU as a multiple of the counted memory."""
    return row["measured_gib"] / row["counted_gib"]
