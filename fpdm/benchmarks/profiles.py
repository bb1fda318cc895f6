"""Where the time of a training step and of a sampling run goes, by kind of operation: a table, a picture, a trace."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from fpdm.benchmarks.timing import Bench, Question
from fpdm.benchmarks.workloads import network, sampling_run, training_step
from fpdm.evaluation.tables import markdown_table
from fpdm.models import compile_layers
from fpdm.sampling.plan import make_plan

# The first kind of which a part of an operation's or kernel's name is told wins.
KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha", "sdpa"),
    "matrix products": ("mm", "linear", "gemm", "convolution", "xmma", "cutlass", "nvjet"),
    "optimizer, average, clipping": ("adam", "_foreach", "multi_tensor", "lerp"),
    "normalisation": ("layer_norm",),
    "GELU, SiLU": ("gelu", "silu"),
    "copies and casts": ("copy", "cat", "memcpy", "memset", "fill", "zero"),
    "fused by the compiler": ("triton", "graph_", "compiled", "cpp_fused"),
    "sums": ("sum", "reduce"),
    "other elementwise": ("add", "mul", "sub", "div", "elementwise", "where", "pow"),
}
OTHER = "everything else"


def profiles(
    models: tuple[str, ...], latent: tuple[int, int, int], batch: int, updates: tuple[int, int], budget: int,
    iterations: int, compiled: bool, folder: Path,
) -> Question:  # fmt: skip
    """updates: n and m of the step that is profiled. folder: where the traces go."""
    common = {"latent": list(latent), "batch": batch, "compiled": compiled}
    cases = []
    for model in models:
        cases.append({"model": model, "work": "training step", "updates": list(updates), **common})
        cases.append({"model": model, "work": "sampling", "budget": budget, "iterations": iterations, **common})
    return Question("Where the time goes", cases, lambda bench, **case: measure(bench, folder, **case), table)


def measure(
    bench: Bench, folder: Path, model: str, work: str, latent: list[int], batch: int, compiled: bool,
    updates: list[int] | None = None, budget: int = 0, iterations: int = 0,
) -> dict:  # fmt: skip
    profiled = network(bench, model, latent)
    implicit = model.startswith("FPDM")
    if compiled:
        compile_layers(profiled)
    if work == "sampling":
        explicit = 2 if implicit else len(profiled.blocks)
        plan = make_plan(explicit, budget=budget, iterations=iterations if implicit else None)
        run = sampling_run(bench, profiled, latent, batch, plan)
    else:
        run = training_step(bench, profiled, latent, batch, [updates] if implicit else [])
    run()
    gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as profiler:
        run()
    name = f"{model}-{work}".replace("/", "-").replace(" ", "-")
    profiler.export_chrome_trace(str(folder / f"profile-{name}.json.gz"))
    seconds = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        seconds[kind_of(event.key)] += spent / 1e6
    return {"seconds": {kind: value for kind, value in seconds.items() if value}}


def kind_of(name: str) -> str:
    """Of an operation or a kernel."""
    name = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def table(rows: list[dict]) -> str:
    labels = [f"{row['model']}, {row['work']}" for row in rows]
    body = []
    for kind in [*KINDS, OTHER]:
        shares = [row["seconds"].get(kind, 0) / sum(row["seconds"].values()) for row in rows]
        if max(shares) >= 0.001:
            body.append([kind, *(f"{share:.1%}" for share in shares)])
    return f"Batch {rows[0]['batch']}, latents {rows[0]['latent']}.\n\n{markdown_table(['', *labels], body)}"


def shares(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Of each case, the share of each kind of operation."""
    return {
        f"{row['model']}, {row['work']}": {k: s / sum(row["seconds"].values()) for k, s in row["seconds"].items()}
        for row in rows
    }
