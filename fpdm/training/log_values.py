"""What the log says of a step: values for log.jsonl, and the same in short form for people."""

import math

from fpdm.training.meter import QUARTERS, Meter
from fpdm.training.parts import Parts
from fpdm.training.step import Outcome
from fpdm.training.watch import Report


def step_values(parts: Parts, meter: Meter, outcome: Outcome, known: Report) -> dict[str, float]:
    """Means over the interval that ends with a step, and values of the step itself; called on every rank.

    A step whose gradients were not finite has no residual and no objective.
    """
    accelerator, step_loss, finite = parts.accelerator, parts.step_loss, known.in_a_row == 0
    values = meter.finish(accelerator) | {"lr": outcome.rate, "skipped": known.skipped}
    if step_loss.network.iterative:
        values |= {"n": outcome.work.n, "m": outcome.work.m}
        if finite:
            values["residual"] = float(accelerator.reduce(outcome.sums.residual, "mean"))
    if step_loss.minimises_more and finite:
        values["objective"] = float(accelerator.reduce(outcome.sums.minimised, "mean"))
    if step_loss.adjoint is not None:
        values |= step_loss.adjoint_facts(accelerator)
    if accelerator.scaler is not None:
        values["loss_scale"] = accelerator.scaler.get_scale()
    return values


def status_line(step: int, steps: int, values: dict[str, float]) -> str:
    """One line of the log for people: the values of log.jsonl in short form."""
    get = values.get
    parts = [f"step {step:>7d}/{steps}"]
    if "loss" in values:
        quarters = " ".join(f"{get(f'loss_t{q}', math.nan):.3f}" for q in range(1, QUARTERS + 1))
        parts.append(f"loss {get('loss'):.4f} = mse {get('mse'):.4f} + vb {get('vb'):.4f}, by t {quarters}")
        parts.append(f"|g| {get('grad_norm'):.3g} (max {get('grad_norm_max'):.3g})")
    if "n" in values:
        parts.append(f"n {get('n')} m {get('m')}" + (f" res {get('residual'):.3f}" if "residual" in values else ""))
    parts.append(f"lr {get('lr'):.3g}")
    if "loss_scale" in values:
        parts.append(f"scale {get('loss_scale'):g}")
    if get("skipped"):
        parts.append(f"skipped {get('skipped')}")
    share = f" ({get('peak_share'):.0%} of peak)" if "peak_share" in values else ""
    parts.append(f"{get('images_per_s'):.4g} img/s, {get('block_passes_per_s'):.4g} passes/s")
    parts.append(f"{get('tflops'):.3g} TFLOP/s{share}")
    parts.append(f"{get('peak_memory_gib'):.2f} GiB")
    return "  ".join(parts)
