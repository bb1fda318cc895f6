"""Plans: how a budget of block passes is spent over timesteps, decided before any tensor exists.

A model call costs its explicit blocks plus the blocks of each update (the paper's Sec. 4.2). The model's ForwardCost
has the numbers.
"""

from typing import NamedTuple

from fpdm.config import check_choice, check_one_of
from fpdm.cost import ForwardCost
from fpdm.sampling.allocation import ALLOCATIONS, DEFAULT_ITERATIONS

CLEAN = -1  # t_next of the last step: the image itself


class Step(NamedTuple):
    """One model call, in the step from timestep t to t_next. iterations is None for an explicit model (DiT)."""

    t: int
    t_next: int
    iterations: int | None


class Spacing(NamedTuple):
    """Where the model calls of a run lie. down_to_zero: see `evenly_spaced`. two_calls: at both ends of every step but
    the last, as some solvers need it."""

    down_to_zero: bool = True
    two_calls: bool = False


TO_ZERO = Spacing()


class Plan(NamedTuple):
    """The model calls of one sampling run, from noise to image. Solvers with two calls per step visit timesteps twice.

    cost: of one call.
    """

    steps: tuple[Step, ...]
    cost: ForwardCost

    @property
    def timesteps(self) -> list[int]:
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
    timesteps: int = 1000,
    spacing: Spacing = TO_ZERO,
) -> Plan:
    """Plan from a `budget` of block passes, or from a number of `steps`.

    cost: of one model call. iterations: updates per call, or their mean (4 if not given); not for an explicit model.
    A constant plan uses as much of the budget as whole timesteps allow; an increasing or decreasing plan uses as much
    as whole updates allow. spacing: as the solver needs it; `steps` counts steps, not model calls.
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
        calls = budget // max(cost.blocks(each), 1)
        steps = (calls + 1) // 2 if spacing.two_calls else calls
        if steps == 0:
            raise ValueError(
                f"budget={budget} does not hold one timestep of {cost.blocks(each)} block passes: "
                + ("raise it, or lower iterations" if cost.iterative else "raise it")
            )
    if steps > timesteps:
        advice = "lower the budget or steps" + (", or raise iterations" if cost.iterative else "")
        raise ValueError(f"{steps} steps, but the model has {timesteps} timesteps: {advice}")
    calls = 2 * steps - 1 if spacing.two_calls else steps
    counts = [None] * calls
    if cost.iterative:
        total = int(cost.updates(budget or calls * cost.blocks(each), calls))
        counts = ALLOCATIONS[allocation].counts(calls, each, ratio, total)
    return _over_time(counts, cost, timesteps, spacing)


def plan_of_counts(cost: ForwardCost, counts: list[int], timesteps: int = 1000, spacing: Spacing = TO_ZERO) -> Plan:
    """Plan with the given updates in each model call, from noise to image."""
    check_iterations(cost, counts=counts)
    if spacing.two_calls and len(counts) % 2 == 0:
        raise ValueError(
            f"counts has {len(counts)} entries: give an odd number (two calls per step, one for the last step)"
        )
    if len(counts) > (2 * timesteps - 1 if spacing.two_calls else timesteps):
        raise ValueError(f"counts has {len(counts)} entries, but the model has {timesteps} timesteps; give fewer")
    return _over_time(counts, cost, timesteps, spacing)


def _over_time(counts: list[int | None], cost: ForwardCost, timesteps: int, spacing: Spacing) -> Plan:
    if spacing.two_calls:
        first, *later = evenly_spaced((len(counts) + 1) // 2, timesteps, spacing.down_to_zero)
        times = [first, *(t for t in later for _ in range(2)), CLEAN]
    else:
        times = [*evenly_spaced(len(counts), timesteps, spacing.down_to_zero), CLEAN]
    return Plan(tuple(Step(*step) for step in zip(times[:-1], times[1:], counts, strict=True)), cost)


def evenly_spaced(steps: int, timesteps: int = 1000, down_to_zero: bool = True) -> list[int]:
    """`steps` timesteps, descending from timesteps-1 to 0, both included; a single step starts at timesteps-1.

    Sampling must start at the last timestep, the only one that is pure noise. Without `down_to_zero`, the timesteps end
    one gap above 0, and the last step goes from there to the image. This is for solvers that extrapolate in log-SNR
    from step to step: there, the step to 0 would be far longer than the step before it.
    """
    if steps == 1:
        return [timesteps - 1]
    if not down_to_zero and steps < timesteps:
        return evenly_spaced(steps + 1, timesteps)[:-1]
    gaps = steps - 1
    return [(2 * i * (timesteps - 1) + gaps) // (2 * gaps) for i in reversed(range(steps))]  # halves round up


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
        f"{steps} timesteps ({plan.steps[0].t}..{plan.steps[-1].t}){calls}, {spent}: "
        f"{plan.block_passes} block passes, {flops_per_image / 1e9:.3f} GFLOPs per image"
    )
