"""Time of a training step and of a sampling run by kind of operation: a table, a picture and traces."""

from itertools import product
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fpdm.benchmarks.timing import Bench, Question
from fpdm.benchmarks.workloads import network, sampling_run, training_step
from fpdm.evaluation.tables import markdown_table
from fpdm.models import block_cost, compile_layers
from fpdm.sampling.plan import make_plan

# An operation or kernel belongs to the first kind of which its name contains a word.
KINDS = {
    "fused by the compiler": ("triton", "cpp_fused", "graph_"),
    "normalisation": ("layer_norm", "gammabeta", "rowwisemoments"),
    "attention": ("scaled_dot_product", "flash", "fmha", "sdpa"),
    "matrix products": ("mm", "linear", "gemm", "convolution", "xmma", "cutlass", "nvjet"),
    "optimizer, average, clipping": ("adam", "_foreach", "multi_tensor", "lerp"),
    "GELU, SiLU": ("gelu", "silu"),
    "copies and casts": ("copy", "cat", "memcpy", "memset", "fill", "zero"),
    "sums": ("sum", "reduce"),
    "other elementwise": ("add", "mul", "sub", "div", "elementwise", "where", "pow"),
}
OTHER = "everything else"


def profiles(
    models: tuple[str, ...], latent: tuple[int, int, int], batch: int, updates: tuple[int, int], budget: int,
    iterations: int, modes: tuple[str, ...], folder: Path,
) -> Question:  # fmt: skip
    """updates: n and m of the profiled step. folder: for the traces."""
    cases = []
    for mode, model in product(modes, models):
        common = {"model": model, "mode": mode, "latent": list(latent), "batch": batch}
        cases.append({**common, "work": "training step", "updates": list(updates)})
        cases.append({**common, "work": "sampling", "budget": budget, "iterations": iterations})
    return Question("Where the time goes", cases, lambda bench, **case: measure(bench, folder, **case), table)


def measure(
    bench: Bench, folder: Path, model: str, mode: str, work: str, latent: list[int], batch: int,
    updates: list[int] | None = None, budget: int = 0, iterations: int = 0,
) -> dict:  # fmt: skip
    torch.compiler.reset()
    profiled = network(bench, model, latent)
    if mode == "compiled":
        compile_layers(profiled)
    if work == "sampling":
        plan = make_plan(block_cost(profiled), budget=budget, iterations=iterations if profiled.iterative else None)
        run = sampling_run(bench, profiled, latent, batch, plan)
    else:
        run = training_step(bench, profiled, latent, batch, [updates] if profiled.iterative else [])
    gpu = bench.device.type == "cuda"
    for _ in range(2):  # set-up and compilation
        run()
    if gpu:
        torch.cuda.synchronize(bench.device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as profiler:
        run()
        if gpu:
            torch.cuda.synchronize(bench.device)
    name = f"{model}-{work}-{mode}".replace("/", "-").replace(" ", "-")
    profiler.export_chrome_trace(str(folder / f"profile-{name}.json.gz"))
    seconds = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        if not gpu:
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:  # only kernels
            seconds[kind_of(event.key)] += event.self_device_time_total / 1e6
    return {"seconds": {kind: value for kind, value in seconds.items() if value}}


def kind_of(name: str) -> str:
    """The kind of an operation or a kernel."""
    name = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def label_of(row: dict) -> str:
    return f"{row['model']}, {row['work']}, {row['mode']}"


def table(rows: list[dict]) -> str:
    labels = [label_of(row) for row in rows]
    body = []
    for kind in [*KINDS, OTHER]:
        shares = [row["seconds"].get(kind, 0) / sum(row["seconds"].values()) for row in rows]
        if max(shares) >= 0.001:
            body.append([kind, *(f"{share:.1%}" for share in shares)])
    return f"Batch {rows[0]['batch']}, latents {rows[0]['latent']}.\n\n{markdown_table(['', *labels], body)}"


def shares(rows: list[dict]) -> dict[str, dict[str, float]]:
    """The share of each kind of operation, for each case."""
    return {label_of(row): {k: s / sum(row["seconds"].values()) for k, s in row["seconds"].items()} for row in rows}
