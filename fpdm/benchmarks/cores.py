"""Cost of one update with several blocks in it compared with the same blocks alone, for each injection."""

from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor, nn

from fpdm.benchmarks.timing import Bench, Question, alternate
from fpdm.benchmarks.updates import count_work
from fpdm.evaluation.tables import markdown_table
from fpdm.models.implicit import ImplicitLayer
from fpdm.models.sizes import SIZES


def cores(
    sizes: tuple[str, ...], injections: tuple[str, ...], depth: int, batch: int, tokens: int, modes: tuple[str, ...]
) -> Question:
    """depth: blocks in an update. tokens: per image."""
    common = {"depth": depth, "batch": batch, "tokens": tokens}
    cases = [{"size": s, "injection": i, "mode": m, **common} for s, i, m in product(sizes, injections, modes)]
    return Question("One update of several blocks against the blocks alone", cases, measure, table)


class Blocks(nn.Module):
    """The blocks of an implicit layer, without its injection."""

    def __init__(self, layer: ImplicitLayer):
        super().__init__()
        self.blocks = layer.blocks

    def forward(self, h: Tensor, modulations: tuple) -> Tensor:
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation)
        return h


def measure(bench: Bench, size: str, injection: str, mode: str, depth: int, batch: int, tokens: int) -> dict:
    torch.compiler.reset()
    width, heads, _ = SIZES[size]
    with bench.device:
        c, x_pre = torch.randn(batch, width), torch.randn(batch, tokens, width)
        layer = ImplicitLayer(width, heads, depth, injection)
    alone, state = Blocks(layer), layer.injection.start(x_pre)
    with torch.no_grad(), bench.autocast():
        constants = layer.constants(x_pre, c).at(0)
    works = {"blocks": lambda: alone(x_pre, constants.modulations), "update": lambda: layer(state, constants)}

    @contextmanager
    def one_timestep():  # weights are cast once for all updates in it
        with torch.no_grad(), bench.autocast():
            yield

    with one_timestep():
        flops = {f"{name}_flops": count_work(work).flops for name, work in works.items()}
    if mode == "compiled":
        alone.compile()
        layer.compile()
    times = alternate(bench, works, one_timestep)
    milliseconds = {f"{name}_ms": 1e3 * found.median for name, found in times.items()}
    return flops | milliseconds | {"ratio": times["update"].against(times["blocks"])}


def table(rows: list[dict]) -> str:
    head = ["size", "mode", "injection", "blocks alone, ms", "update, ms", "update / blocks", "quartiles", "by FLOPs"]
    body = [
        [row["size"], row["mode"], f"`{row['injection']}`", f"{row['blocks_ms']:.4g}", f"{row['update_ms']:.4g}",
         f"{row['ratio'][1]:.3f}", f"{row['ratio'][0]:.3f} to {row['ratio'][2]:.3f}",
         f"{row['update_flops'] / row['blocks_flops']:.3f}"]
        for row in rows
    ]  # fmt: skip
    first = rows[0]
    text = f"{first['depth']} blocks in an update, {first['tokens']} tokens per image, batch {first['batch']}."
    return f"{text}\n\n{markdown_table(head, body, 3)}"
