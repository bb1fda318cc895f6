"""Plans: how a budget of block passes is spent over timesteps, decided before any tensor exists.

A model call costs its explicit blocks plus the blocks of each update (the paper's Sec. 4.2). The model's ForwardCost
has the numbers.
"""

from typing import NamedTuple

from fpdm.config import check_choice, check_one_of
from fpdm.cost import ForwardCost
from fpdm.processes.times import THOUSAND, TO_ZERO, ContinuousTimes, DiscreteTimes, Spacing
from fpdm.sampling.allocation import ALLOCATIONS, DEFAULT_ITERATIONS

Times = DiscreteTimes | ContinuousTimes


class Step(NamedTuple):
    """One model call, in the step from timestep t to t_next. iterations is None for an explicit model (DiT)."""

    t: float  # a whole number in the discrete process
    t_next: float
    iterations: int | None


class Plan(NamedTuple):
    """The model calls of one sampling run, from noise to image. Solvers with two calls per step visit timesteps twice.

    cost: of one call.
    """

    steps: tuple[Step, ...]
    cost: ForwardCost

    @property
    def timesteps(self) -> list[float]:
        """The timestep of each model call, descending."""
        return [step.t for step in self.steps]

    @property
    def iterations(self) -> list[int]:
        """Updates in each model call; 0 throughout for an explicit model."""
        return [step.iterations or 0 for step in self.steps]

    @property
    def block_passes(self) -> int:
        """Block passes of one image. Guidance doubles the batch, not this count."""
        return self.cost.total_blocks(self.iterations)


def check_iterations(cost: ForwardCost, **iterations: int | list[int] | None) -> None:
    """ValueError for iterations of a model without an implicit layer."""
    for name, value in iterations.items():
        if value is not None and not cost.iterative:
            raise ValueError(f"{name}={value}: an explicit model (DiT) has no iterations; leave it out")


def make_plan(
    cost: ForwardCost,
    *,
    budget: int | None = None,
    steps: int | None = None,
    iterations: int | None = None,
    allocation: str = "constant",
    ratio: float = 3.0,
    times: Times = THOUSAND,
    spacing: Spacing = TO_ZERO,
) -> Plan:
    """Plan from a `budget` of block passes, or from a number of `steps`.

    cost: of one model call. iterations: updates per call, or their mean (4 if not given); not for an explicit model.
    A constant plan uses as much of the budget as whole timesteps allow; an increasing or decreasing plan uses as much
    as whole updates allow. times: the timesteps that can be visited, of the process. spacing: as the solver needs it;
    `steps` counts steps, not model calls.
    """
    check_one_of(budget=budget, steps=steps)
    check_iterations(cost, iterations=iterations)
    check_choice("allocation", allocation, ALLOCATIONS)
    if not cost.iterative and allocation != "constant":
        raise ValueError(f"allocation={allocation!r}: an explicit model (DiT) has no iterations to allocate")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations={iterations}: at least 1")
    each = (iterations or DEFAULT_ITERATIONS) if cost.iterative else None
    if steps is None:
        steps = times.steps(budget // max(cost.blocks(each), 1), spacing)
        if steps == 0:
            raise ValueError(
                f"budget={budget} does not hold one timestep of {cost.blocks(each)} block passes: "
                + ("raise it, or lower iterations" if cost.iterative else "raise it")
            )
    if steps > times.most:
        advice = "lower the budget or steps" + (", or raise iterations" if cost.iterative else "")
        raise ValueError(f"{steps} steps, but the model has {times.most} timesteps: {advice}")
    calls = times.calls(steps, spacing)
    counts = [None] * calls
    if cost.iterative:
        total = int(cost.updates(budget or calls * cost.blocks(each), calls))
        counts = ALLOCATIONS[allocation].counts(calls, each, ratio, total)
    return _over_time(counts, cost, times, spacing)


def plan_of_counts(cost: ForwardCost, counts: list[int], times: Times = THOUSAND, spacing: Spacing = TO_ZERO) -> Plan:
    """Plan with the given updates in each model call, from noise to image."""
    check_iterations(cost, counts=counts)
    steps = times.steps(len(counts), spacing)
    if times.calls(steps, spacing) != len(counts):
        raise ValueError(
            f"counts has {len(counts)} entries, but {steps} steps of this solver have {times.calls(steps, spacing)} "
            f"model calls, {steps + 1} steps {times.calls(steps + 1, spacing)}; give so many"
        )
    if steps > times.most:
        raise ValueError(f"counts has {len(counts)} entries, but the model has {times.most} timesteps; give fewer")
    return _over_time(counts, cost, times, spacing)


def _over_time(counts: list[int | None], cost: ForwardCost, times: Times, spacing: Spacing) -> Plan:
    visited = [*times.visits(times.steps(len(counts), spacing), spacing), times.clean]
    return Plan(tuple(Step(*step) for step in zip(visited[:-1], visited[1:], counts, strict=True)), cost)


def describe(plan: Plan, flops_per_image: float) -> str:
    """The plan as one line, shown before the run. flops_per_image: of the run, with guidance."""
    counts, cost = plan.iterations, plan.cost
    spent = f"{cost.explicit_blocks} blocks each"
    if cost.iterative:
        monotonic = counts in (sorted(counts), sorted(counts, reverse=True))
        ends = (counts[0], counts[-1]) if monotonic else (min(counts), max(counts))
        iterations = f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        size = "" if cost.update_blocks == 1 else f" of {cost.update_blocks} blocks"
        spent = f"{cost.explicit_blocks} explicit blocks + {iterations} iterations{size} each"
    steps = len(set(plan.timesteps))
    calls = "" if steps == len(plan.steps) else f", {len(plan.steps)} model calls"
    return (
        f"{steps} timesteps ({plan.steps[0].t:.4g}..{plan.steps[-1].t:.4g}){calls}, {spent}: "
        f"{plan.block_passes} block passes, {flops_per_image / 1e9:.3f} GFLOPs per image"
    )
