"""Effect of computing constants once and of updates without a graph: ours against the published form of the network."""

import math
from copy import deepcopy

import torch

from fpdm.benchmarks.counted_memory import GIB
from fpdm.benchmarks.naive import naive_form
from fpdm.benchmarks.timing import Bench, Question, alternate
from fpdm.benchmarks.workloads import network, sampling_run, training_step
from fpdm.devices import peak_memory
from fpdm.evaluation.tables import markdown_table
from fpdm.models import FixedPointDiT, block_cost, compile_layers
from fpdm.sampling.plan import make_plan
from fpdm.training.sjfb import SJFBConfig, mean_iterations
from fpdm.training.step_memory import step_memory


def published_form(
    model: str, latent: tuple[int, int, int], batch: int, updates: tuple[int, int], compiled: bool, budget: int,
    iterations: int,
) -> Question:  # fmt: skip
    """updates: S-JFB's N and M; budget and iterations: of the sampling run."""
    common = {"model": model, "latent": list(latent), "batch": batch}
    cases = [
        common | {"work": "training", "updates": list(updates), "compiled": compiled},
        common | {"work": "sampling", "budget": budget, "iterations": iterations, "compiled": compiled},
    ]
    return Question("Against the published form of the same network", cases, measure, table)


def measure(
    bench: Bench, model: str, latent: list[int], batch: int, work: str, compiled: bool,
    updates: list[int] | None = None, budget: int = 0, iterations: int = 0,
) -> dict:  # fmt: skip
    torch.compiler.reset()
    ours = network(bench, model, latent)
    forms = {"ours": ours, "published": naive_form(deepcopy(ours))}
    row = memory_of(bench, forms, latent, batch, *updates) if work == "training" else {}
    if compiled:
        forms["compiled"] = deepcopy(ours)
        compile_layers(forms["compiled"])
    if work == "training":
        pairs = average_steps(*updates)
        steps = {name: training_step(bench, form, latent, batch, pairs) for name, form in forms.items()}
        works, images = {name: _all_of(step, len(pairs)) for name, step in steps.items()}, batch * len(pairs)
    else:
        plan = make_plan(block_cost(ours), budget=budget, iterations=iterations)
        works = {name: sampling_run(bench, form, latent, batch, plan) for name, form in forms.items()}
        images = batch
    times = alternate(bench, works)
    return row | {f"{name}_images_per_s": images / seconds.median for name, seconds in times.items()}


def memory_of(bench: Bench, forms: dict[str, FixedPointDiT], latent: list[int], batch: int, n: int, m: int) -> dict:
    """Memory of a training step with n and m updates, for each form: counted and, on a GPU, the measured peak."""
    row = {}
    for name, form in forms.items():
        counted = step_memory(form, batch, bench.precision != "no", False, iterations=m, iterations_no_grad=n)
        row[f"{name}_counted_gib"] = counted.peak / GIB
        if bench.device.type == "cuda":
            others = torch.cuda.memory_allocated(bench.device) - sum(p.nbytes for p in form.parameters())
            step = training_step(bench, form, latent, batch, [(n, m)])
            step()  # creates the optimizer's state
            torch.cuda.reset_peak_memory_stats(bench.device)
            step()
            row[f"{name}_peak_gib"] = (peak_memory(bench.device) - others) / GIB
            form.zero_grad()
            del step
    return row


def average_steps(n: int, m: int) -> list[tuple[int, int]]:
    """(n, m) of steps with the same mean cost as S-JFB with N = n and M = m; the cost is linear in both."""
    mean_n, mean_m = mean_iterations(SJFBConfig(no_grad=n, grad=m))
    return sorted({(math.floor(mean_n), math.floor(mean_m)), (math.ceil(mean_n), math.ceil(mean_m))})


def _all_of(step, count: int):
    def run():
        for _ in range(count):
            step()

    return run


def table(rows: list[dict]) -> str:
    head = ["", "", "published form, images/s", "ours, images/s", "ours / published", "compiled / published"]
    head += [f"{name}, {kind} GiB" for kind in ("counted", "peak") for name in ("published form", "ours")]
    body = []
    for row in rows:
        published, ours = row["published_images_per_s"], row["ours_images_per_s"]
        if row["work"] == "training":
            what = f"N = {row['updates'][0]}, M = {row['updates'][1]}"
        else:
            what = f"{row['budget']} passes, {row['iterations']} it."
        keys = [f"{name}_{kind}_gib" for kind in ("counted", "peak") for name in ("published", "ours")]
        memory = [f"{row[key]:.2f}" if key in row else "" for key in keys]
        with_compiler = f"{row['compiled_images_per_s'] / published:.2f}" if "compiled_images_per_s" in row else ""
        label = f"{row['model']}, batch {row['batch']}, {row['work']}"
        speeds = [f"{published:.4g}", f"{ours:.4g}", f"{ours / published:.2f}", with_compiler]
        body.append([label, what, *speeds, *memory])
    return f"Memory is that of the largest step (n = N, m = M).\n\n{markdown_table(head, body, 2)}"
