"""Cost of a separate (n, m) for every process, where each step waits for the slowest process: simulated from measured
steps."""

import numpy as np

from fpdm.benchmarks.timing import Bench, Question, alternate
from fpdm.benchmarks.workloads import network, training_step
from fpdm.evaluation.tables import markdown_table

STEPS = 100_000  # simulated


def ranks(
    model: str, latent: tuple[int, int, int], batch: int, updates: tuple[int, ...], processes: tuple[int, ...]
) -> Question:
    """updates: M = N of S-JFB."""
    common = {"model": model, "latent": list(latent), "batch": batch, "processes": list(processes)}
    return Question(
        "Separate or shared (n, m) on all processes", [common | {"updates": k} for k in updates], measure, table
    )


def measure(bench: Bench, model: str, latent: list[int], batch: int, updates: int, processes: list[int]) -> dict:
    trained = network(bench, model, latent)
    steps = {"base": (0, 1), "no_grad": (updates, 1), "grad": (0, updates)}
    works = {name: training_step(bench, trained, latent, batch, [pair]) for name, pair in steps.items()}
    times = alternate(bench, works)
    base, no_grad, grad = (times[name].median for name in steps)
    costs = {
        "base_s": base,
        "no_grad_update_s": max(no_grad - base, 0) / updates,
        "grad_update_s": max(grad - base, 0) / max(updates - 1, 1),
    }
    return costs | {"slowdown": [slowdown(updates, count, **costs) for count in processes]}


def slowdown(updates: int, processes: int, base_s: float, no_grad_update_s: float, grad_update_s: float) -> float:
    """Training time with a separate (n, m) per process, relative to a shared one; simulated.

    base_s: of a step with n = 0, m = 1.
    """
    draws = np.random.default_rng(0)
    longest = np.zeros(STEPS)
    total = 0.0
    for _ in range(processes):
        n, m = draws.integers(0, updates, STEPS, endpoint=True), draws.integers(1, updates, STEPS, endpoint=True)
        seconds = base_s + n * no_grad_update_s + (m - 1) * grad_update_s
        longest, total = np.maximum(longest, seconds), total + seconds.mean()
    return float(longest.mean() / (total / processes))


def table(rows: list[dict]) -> str:
    counts = rows[0]["processes"]
    head = ["M = N", "step with n = 0, m = 1, ms", "update without gradient, ms", "update with gradient, ms",
            *(f"{count} processes" for count in counts)]  # fmt: skip
    body = [
        [str(row["updates"]), *(f"{1e3 * row[name]:.3g}" for name in ("base_s", "no_grad_update_s", "grad_update_s")),
         *(f"{factor:.2f}" for factor in row["slowdown"])] for row in rows
    ]  # fmt: skip
    return (
        f"{rows[0]['model']}, batch {rows[0]['batch']} per process, without communication.\n\n"
        f"{markdown_table(head, body)}"
    )
