"""Effects of 16 bits on solves, predictions, gradients and memory, with a float32 or a 16-bit residual stream.

The networks must be trained on scikit-learn's digits, as assets/fpdm-digits is, because they are tested on them."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from fpdm import cli
from fpdm.benchmarks.precision import (
    deviation_table,
    deviations,
    forms,
    gradient_deviation,
    in_form,
    largest_steps,
    noisy_digits,
    residual_table,
    residuals,
)
from fpdm.config import check_choice, check_range, limits
from fpdm.devices import allow_tf32, check_precision, process_state
from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.loading import load_checkpoint, open_source
from fpdm.precision import PRECISIONS

logger = logging.getLogger("fpdm")
ITERATIONS = (1, 4, 12, 60)
IMAGES = 8  # at each timestep
GIB = 2**30


@dataclass
class Settings:
    """What is compared.

    Args:
        ckpt: checkpoints of networks trained on the digits: an FPDM, and optionally a DiT.
        precisions: the 16-bit types to compare with float32, bf16 and fp16.
        batch_size: batch size of the training step for the counted memory.
        out: file for the tables.
    """

    ckpt: tuple[str, ...] = ("assets/fpdm-digits",)
    precisions: tuple[str, ...] = ("bf16", "fp16")
    batch_size: int = 64
    out: str = "results/precision.md"

    def __post_init__(self):
        for precision in self.precisions:
            check_choice("precisions", precision, tuple(PRECISIONS)[1:])
        check_range(1, limits.BATCH, batch_size=self.batch_size)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    device = process_state().device
    allow_tf32(False)  # float32 is the reference here
    for precision in settings.precisions if device.type == "cuda" else ():
        check_precision("precisions", precision, device)
    solved, found = {}, {}
    for path in settings.ckpt:
        model, facts, _ = load_checkpoint(path)
        source = open_source(model, facts, device=device)
        batch = noisy_digits(source, IMAGES)
        exact = in_form(model, half_stream=False)
        for label, precision, half in forms(settings.precisions):
            network = in_form(model, half)
            if model.iterative:
                solved[label] = residuals(network, precision, batch, ITERATIONS)
            found[model.family, label] = (
                deviations(network, exact, precision, batch, ITERATIONS),
                gradient_deviation(network, exact, source, precision, batch),
            )
    text = "\n\n".join(
        [residual_table(solved, ITERATIONS), deviation_table(found, ITERATIONS), memory_table(settings.batch_size)]
    )
    logger.info(text)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, f"{text}\n\n{device.type}, torch {torch.__version__}, {IMAGES} images per timestep\n")


def memory_table(batch: int) -> str:
    """Table of the counted memory of the largest training step."""
    rows = []
    for recompute, label in ((False, ""), (True, ", gradient checkpointing")):
        sixteen, thirty_two = (largest_steps(half, batch, recompute) for half in (True, False))
        rows += [[name + label, f"{sixteen[name] / GIB:.2f}", f"{thirty_two[name] / GIB:.2f}"] for name in sixteen]
    return markdown_table([f"largest step, batch {batch}, GiB", "16-bit stream", "float32 stream"], rows)


if __name__ == "__main__":
    cli.run(main)
