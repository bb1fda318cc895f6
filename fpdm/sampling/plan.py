"""Plans: how a budget of block passes is spent over timesteps, decided before any tensor exists.

One timestep costs `explicit_blocks + iterations` block passes (the paper's Sec. 4.2).
"""

from typing import NamedTuple

CLEAN = -1  # t_next of the last step: the image itself


class Step(NamedTuple):
    """One model call, on the way from timestep t to t_next. iterations is None for an explicit model (DiT)."""

    t: int
    t_next: int
    iterations: int | None


class Plan(NamedTuple):
    """The model calls of one sampling run, from noise to image; solvers with two calls a step visit timesteps twice."""

    steps: tuple[Step, ...]
    explicit_blocks: int

    @property
    def timesteps(self) -> list[int]:
        """Of each model call, descending."""
        return [step.t for step in self.steps]

    @property
    def iterations(self) -> list[int]:
        """Updates in each model call; 0 throughout for an explicit model."""
        return [step.iterations or 0 for step in self.steps]

    @property
    def block_passes(self) -> int:
        """For one image; guidance doubles the batch, not this count."""
        return self.explicit_blocks * len(self.steps) + sum(self.iterations)


def make_plan(
    explicit_blocks: int,
    *,
    budget: int | None = None,
    steps: int | None = None,
    iterations: int | None = None,
    allocation: str = "constant",
    ratio: float = 3.0,
    timesteps: int = 1000,
    down_to_zero: bool = True,
    two_calls: bool = False,
) -> Plan:
    """Plan from a `budget` of block passes, or from a number of `steps`.

    iterations: updates per timestep, or their mean; None for an explicit model, whose
    timestep costs `explicit_blocks`. A constant plan uses as much of the budget as whole
    timesteps can; an increasing or decreasing one uses it exactly. down_to_zero: see `evenly_spaced`.
    two_calls: call the model at both ends of every step but the last; steps then count these.
    """
    if (budget is None) == (steps is None):
        raise ValueError(f"budget={budget}, steps={steps}: give one of the two")
    if iterations is None and allocation != "constant":
        raise ValueError(f"allocation={allocation!r}: an explicit model has no iterations to allocate")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations={iterations}: at least 1")
    per_step = explicit_blocks + (iterations or 0)
    if steps is None:
        calls = budget // max(per_step, 1)
        steps = (calls + 1) // 2 if two_calls else calls
        if steps == 0:
            raise ValueError(
                f"budget={budget} does not hold one timestep of {per_step} block passes: "
                + ("raise it" if iterations is None else "raise it, or lower iterations")
            )
    if steps > timesteps:
        advice = "lower the budget or steps" if iterations is None else "lower the budget or steps, or raise iterations"
        raise ValueError(f"{steps} steps, but the model knows {timesteps} timesteps: {advice}")
    calls = 2 * steps - 1 if two_calls else steps
    total = (budget or calls * per_step) - calls * explicit_blocks
    counts = _allocate(calls, iterations, allocation, ratio, total)
    return _over_time(counts, explicit_blocks, timesteps, down_to_zero, two_calls)


def plan_of_counts(
    explicit_blocks: int,
    counts: list[int],
    timesteps: int = 1000,
    down_to_zero: bool = True,
    two_calls: bool = False,
) -> Plan:
    """Plan with the given updates in each model call, from noise to image."""
    if two_calls and len(counts) % 2 == 0:
        raise ValueError(f"counts: {len(counts)} of them, but two calls a step, one for the last, make an odd number")
    if len(counts) > (2 * timesteps - 1 if two_calls else timesteps):
        raise ValueError(f"counts: {len(counts)} of them, but the model knows {timesteps} timesteps")
    return _over_time(counts, explicit_blocks, timesteps, down_to_zero, two_calls)


def spread_evenly(total: int, calls: int) -> list[int]:
    """`total` updates over so many model calls, as nearly alike as whole numbers can be."""
    return [(total * (i + 1)) // calls - (total * i) // calls for i in range(calls)]


def _over_time(
    counts: list[int | None], explicit_blocks: int, timesteps: int, down_to_zero: bool, two_calls: bool
) -> Plan:
    if two_calls:
        first, *later = evenly_spaced((len(counts) + 1) // 2, timesteps, down_to_zero)
        times = [first, *(t for t in later for _ in range(2)), CLEAN]
    else:
        times = [*evenly_spaced(len(counts), timesteps, down_to_zero), CLEAN]
    return Plan(tuple(Step(*step) for step in zip(times[:-1], times[1:], counts, strict=True)), explicit_blocks)


def evenly_spaced(steps: int, timesteps: int = 1000, down_to_zero: bool = True) -> list[int]:
    """`steps` timesteps, descending from timesteps-1 to 0 (both included; one step starts at the top).

    Sampling must start at the last timestep, the only one that is pure noise. Without
    `down_to_zero` they end one gap above 0, and the last step goes from there to the image:
    for solvers that extrapolate from one step to the next in log-SNR, in which the step down to
    0 would be far longer than the one before it.
    """
    if steps == 1:
        return [timesteps - 1]
    if not down_to_zero and steps < timesteps:
        return evenly_spaced(steps + 1, timesteps)[:-1]
    gaps = steps - 1
    return [(2 * i * (timesteps - 1) + gaps) // (2 * gaps) for i in reversed(range(steps))]  # halves round up


def _allocate(steps: int, iterations: int | None, allocation: str, ratio: float, total: int) -> list[int | None]:
    if allocation in ("constant", "adaptive"):  # of the latter this is the mean
        return [iterations] * steps
    ramp = [1 + (ratio - 1) * i / max(steps - 1, 1) for i in range(steps)]
    counts = _share_out(total, ramp)
    if allocation == "increasing":
        return counts
    if allocation == "decreasing":
        return counts[::-1]
    raise ValueError(f"allocation={allocation!r}: choose constant, increasing, decreasing or adaptive")


def _share_out(total: int, weights: list[float]) -> list[int]:
    """Whole numbers of at least 1, in proportion to ascending `weights`, that add up to `total`.

    Shares that would fall below 1 are set to 1 and the others share what is left; rounding
    is by largest remainder, which keeps the order.
    """
    ones = 0
    while True:
        rest, left = weights[ones:], total - ones
        shares = [left * weight / sum(rest) for weight in rest]
        if shares[0] >= 1 or len(rest) == 1:
            break
        ones += sum(share < 1 for share in shares)
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(rest)), key=lambda i: (shares[i] - counts[i], i), reverse=True)
    for i in by_remainder[: left - sum(counts)]:
        counts[i] += 1
    return [1] * ones + counts


def describe(plan: Plan, flops_per_image: int) -> str:
    """Plan as the line that is shown before it runs."""
    counts = plan.iterations
    if plan.steps[0].iterations is None:
        spent = f"{plan.explicit_blocks} blocks each"
    elif min(counts) == max(counts):
        spent = f"{plan.explicit_blocks} explicit blocks + {counts[0]} iterations each"
    else:
        spent = f"{plan.explicit_blocks} explicit blocks + {counts[0]} to {counts[-1]} iterations each"
    steps = len(set(plan.timesteps))
    calls = "" if steps == len(plan.steps) else f", {len(plan.steps)} model calls"
    return (
        f"{steps} timesteps ({plan.steps[0].t}..{plan.steps[-1].t}){calls}, {spent}: "
        f"{plan.block_passes} block passes, {flops_per_image / 1e9:.3f} GFLOPs per image"
    )
