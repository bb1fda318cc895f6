"""Memory of a training step, FPDM compared with DiT, counted without running the step."""

import math

from fpdm.benchmarks.timing import Bench, Question
from fpdm.evaluation.tables import markdown_table
from fpdm.models import build_model, meta_twin
from fpdm.training.sjfb import SJFBConfig, mean_iterations
from fpdm.training.step_memory import step_memory

GIB = 2**30
MEAN, LARGEST = STEPS = ("mean, rounded up", "largest")
PAPER = {"DiT": 25.2, "FPDM": 10.2}  # GB, Tab. 1 of the paper


def memory(size: str, patch: int, latent: tuple[int, int, int], batch: int, updates: tuple[int, ...]) -> Question:
    """updates: M = N."""
    steps = [{"family": "DiT"}]
    steps += [{"family": "FPDM", "updates": k, "step": step} for k in updates for step in STEPS]
    common = {"size": size, "patch": patch, "latent": list(latent), "batch": batch}
    cases = [common | step | {"recompute": recompute} for recompute in (False, True) for step in steps]
    return Question("Memory of a training step, counted", cases, measure, table)


def iterations_of(updates: int, step: str) -> tuple[int, int]:
    """(n, m) of a step with M = N = updates: the mean values, rounded up, or the largest."""
    n, m = (updates, updates) if step == LARGEST else mean_iterations(SJFBConfig(no_grad=updates, grad=updates))
    return math.ceil(n), math.ceil(m)


def measure(
    bench: Bench, size: str, patch: int, latent: list[int], batch: int, family: str, recompute: bool, updates: int = 0,
    step: str = "",
) -> dict:  # fmt: skip
    model = meta_twin(build_model(f"{family}-{size}/{patch}", in_channels=latent[0], input_size=latent[1]))
    n, m = iterations_of(updates, step) if updates else (0, 0)
    sizes = {"iterations": m, "iterations_no_grad": n} if updates else {}
    return step_memory(model, batch, bench.precision != "no", recompute, **sizes)._asdict()


def label_of(row: dict) -> str:
    """The network of a case and, for an FPDM, its M = N."""
    updates = f", M = N = {row['updates']}" if "updates" in row else ""
    return f"{row['family']}-{row['size']}/{row['patch']}{updates}"


def table(rows: list[dict]) -> str:
    dit = {row["recompute"]: row["peak"] for row in rows if row["family"] == "DiT"}
    head = [
        "",
        "step",
        "checkpointing",
        "weights",
        "gradients",
        "optimizer",
        "EMA",
        "activations",
        "peak",
        "relative to DiT",
    ]
    body = []
    for row in rows:
        parts = [
            f"{row[name] / GIB:.2f}" for name in ("weights", "gradients", "optimizer", "ema", "activations", "peak")
        ]
        share = f"{row['peak'] / dit[row['recompute']]:.0%}" if row["recompute"] in dit else ""
        body.append([label_of(row), row.get("step", ""), "yes" if row["recompute"] else "no", *parts, share])
    share = PAPER["FPDM"] / PAPER["DiT"]
    return (
        f"Batch {rows[0]['batch']}, latents {rows[0]['latent']}, GiB. The paper reports {PAPER['FPDM']} GB for FPDM "
        f"and {PAPER['DiT']} GB for DiT, a ratio of {share:.0%}. Activations are counted at the end of the forward "
        f"pass.\n\n{markdown_table(head, body, 3)}"
    )
