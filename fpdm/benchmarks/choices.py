"""What each choice of a newer recipe costs per training step, against the paper's recipe on the same network."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import product

import torch
from torch import nn

from fpdm import cli
from fpdm.benchmarks.timing import Bench, Question, alternate
from fpdm.chain.choices import CHOICES
from fpdm.config import ExperimentConfig
from fpdm.evaluation.tables import markdown_table
from fpdm.models import compile_layers
from fpdm.processes import make_process
from fpdm.training.draws import draw_step
from fpdm.training.ema import make_averages
from fpdm.training.objective import Objective
from fpdm.training.optimizers import make_optimizer, parameter_groups
from fpdm.training.setup import build_network
from fpdm.training.sjfb import plan_step
from fpdm.training.step_loss import Batch, StepLoss

CLASSES = 1000
FAMILIES = ("FPDM", "DiT")
PAPER, *OTHERS = CHOICES


def choices(
    size: str, patch: int, latent: tuple[int, int, int], batch: int, updates: int, modes: tuple[str, ...], length: int
) -> Question:
    """updates: M = N of S-JFB, from which n and m are drawn. length: steps per measurement, with the same n and m for
    every choice."""
    common = {"size": size, "patch": patch, "latent": list(latent), "batch": batch, "updates": updates,
              "length": length}  # fmt: skip
    cases = [common | {"family": f, "choice": c, "mode": m} for f, m, c in product(FAMILIES, modes, OTHERS)]
    return Question("What a choice costs per training step", cases, measure, table)


def measure(
    bench: Bench, size: str, patch: int, latent: list[int], batch: int, updates: int, length: int, family: str,
    choice: str, mode: str,
) -> dict:  # fmt: skip
    torch.compiler.reset()
    works = {}
    for name in (PAPER, choice):
        options = {"model.name": f"{family}-{size}/{patch}", "optim.batch_size": batch, **CHOICES[name].options}
        if family == "FPDM":
            options |= {"sjfb.no_grad": updates, "sjfb.grad": updates}
        words = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
        config = cli.parse(ExperimentConfig, cli.make_parser(ExperimentConfig, ""), words)
        works[name] = some_steps(bench, config, latent, length, mode == "compiled")
    times = alternate(bench, works)
    return {"paper_ms": 1e3 * times[PAPER].median / length, "choice_ms": 1e3 * times[choice].median / length}


def some_steps(
    bench: Bench, config: ExperimentConfig, latent: list[int], length: int, compiled: bool
) -> Callable[[], None]:
    """The first steps of train.py on random latents: draws, loss, backward, clipping, optimizer, averages."""
    batch, process = config.optim.batch_size, make_process(asdict(config.diffusion))
    torch.manual_seed(0)
    network = build_network(config, latent, CLASSES).to(bench.device).train()
    objective, averages = Objective(process).to(bench.device), make_averages(config.optim, network)
    if compiled:
        compile_layers(network)
    trained = [*network.parameters(), *objective.parameters()]
    optimizer = make_optimizer(config.optim, parameter_groups(config.optim, network, objective.parameters()))
    step_loss = StepLoss(config, network, network, process, objective)
    x0 = torch.randn(batch, *latent, device=bench.device)
    y = torch.arange(batch, device=bench.device) % CLASSES

    def call() -> None:
        for step in range(length):
            draws = draw_step(0, step, batch, slice(0, batch), latent, process, network.class_dropout, bench.device)
            work = plan_step(config.sjfb, network, 0, step, length)
            optimizer.zero_grad()
            with bench.autocast():
                found = step_loss(Batch(x0, y, draws), work)
            found.minimised.mean().backward()
            nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
            optimizer.step()
            for average in averages.values():
                average.update(network, step)

    return call


def table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys((row["family"], row["mode"]) for row in rows))
    found = {(row["choice"], row["family"], row["mode"]): row for row in rows}
    body = []
    for choice in OTHERS:
        each = [found.get((choice, *column)) for column in columns]
        body.append([choice, *("" if row is None else f"{row['choice_ms'] / row['paper_ms']:.2f}" for row in each)])
    paper = [[row["paper_ms"] for row in rows if (row["family"], row["mode"]) == column] for column in columns]
    body.insert(0, [f"{PAPER}, ms/step", *(f"{min(found):.3g} to {max(found):.3g}" for found in paper)])
    first = rows[0]
    text = (
        f"Size {first['size']}/{first['patch']}, latents {first['latent']}, batch {first['batch']}, n and m up to "
        f"{first['updates']}. Time per step as a multiple of {PAPER} recipe's, measured beside it."
    )
    return f"{text}\n\n{markdown_table(['', *(', '.join(column) for column in columns)], body, 1)}"
