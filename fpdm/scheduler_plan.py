"""The model calls that a diffusers scheduler makes, for a budget of block passes or a number of steps."""

from collections.abc import Sequence
from numbers import Integral

import torch
from diffusers import SchedulerMixin

from fpdm.config import check_one_of, check_range, limits
from fpdm.cost import ForwardCost
from fpdm.processes import Process
from fpdm.sampling.allocation import DEFAULT_ITERATIONS
from fpdm.sampling.plan import check_iterations
from fpdm.schedulers import set_steps, timestep_of


def plan_calls(
    scheduler: SchedulerMixin,
    process: Process,
    cost: ForwardCost,
    budget: int | None,
    steps: int | None,
    iterations: int | Sequence[int] | None,
    device: torch.device,
) -> list[tuple[float, int | None]]:
    """Set the scheduler's timesteps. Returns the process's timestep and the updates of each model call; None for an
    explicit model.

    cost: of one call. budget: block passes per image; steps: of the scheduler; give one of them. iterations: per call,
    one number for all or a list.
    """
    check_one_of(budget=budget, num_inference_steps=steps)
    for name, value in (("budget", budget), ("num_inference_steps", steps)):
        if value is not None and not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r}: expected a whole number")
    check_range(1, limits.PASSES, budget=budget, num_inference_steps=steps)
    most = process.times().most
    if (steps or 0) > most:
        raise ValueError(f"num_inference_steps={steps}: the model has {most} timesteps")
    check_iterations(cost, iterations=iterations)
    each = (DEFAULT_ITERATIONS if iterations is None else iterations) if cost.iterative else None
    listed = isinstance(each, (list, tuple))
    if cost.iterative and not all(isinstance(count, Integral) for count in (each if listed else [each])):
        raise ValueError(f"iterations={iterations!r}: expected a whole number, or a list of whole numbers")
    check_range(1, limits.ITERATIONS, iterations=each)
    if budget is None:
        set_steps(scheduler, int(steps), device)
    elif listed:
        raise ValueError("budget with a list of iterations: leave budget out, and give num_inference_steps")
    else:
        _fill(scheduler, budget, budget // max(cost.blocks(each), 1), most, device)
    # Only once, because it waits for the device.
    times = timestep_of(scheduler, process, scheduler.timesteps).tolist()
    counts = list(each) if listed else [each] * len(times)
    if len(counts) != len(times):
        raise ValueError(
            f"iterations has {len(counts)} entries, but the scheduler calls the model {len(times)} times; give "
            f"{len(times)}"
        )
    return [(time, None if count is None else int(count)) for time, count in zip(times, counts, strict=True)]


def _fill(scheduler: SchedulerMixin, budget: int, calls: int, most: int, device: torch.device) -> None:
    """Set as many steps, up to `most`, as fit into `calls` model calls, for any number of calls per step."""
    for steps in range(min(calls, most), 0, -1):
        set_steps(scheduler, steps, device)
        if len(scheduler.timesteps) <= calls:
            return
    raise ValueError(f"budget={budget} does not hold one step: raise it, or lower iterations")
