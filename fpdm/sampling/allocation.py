"""Allocations: how many updates of the implicit layer each model call of a sampling run gets (Sec. 3.3).

Most are fixed in the plan, before any tensor exists. A run-time allocation requests updates call by call and observes
how many were made. To add an allocation, add an entry to ALLOCATIONS.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

DEFAULT_ITERATIONS = 4  # the paper's optimum at 280 block passes is 4 to 8 (Fig. 4)


class RunTimeAllocation(Protocol):
    """The allocation of one run. Rows are the samples of its batch, or twice as many if guidance doubles them."""

    def request(self, call: int, rows: int) -> dict[str, Any]:
        """Model arguments for the first `rows` rows at this call; they replace the plan's iterations.

        iterations: a number, or one for each row (rows,). Others, such as tolerance, if the model takes them.
        """

    def observe(self, updates: Tensor) -> None:
        """See how many updates each row got, (rows,)."""

    @staticmethod
    def explain(settings: Any) -> str:
        """What it does with these sampling settings, for the line that is printed before a run."""


class Allocation(NamedTuple):
    """counts: (calls, mean updates per call, ratio, total updates) -> updates of each call, from noise to image.

    about: a description for the help. ratio: whether it uses a ratio. at_run_time: a class, made anew for each run with
    (updates of each call in the plan, rows, device, sampling settings); the plan's counts then give only the total.
    """

    counts: Callable[[int, int, float, int], list[int]]
    about: str
    ratio: bool = False
    at_run_time: type[RunTimeAllocation] | None = None


def constant(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """The same number at each call."""
    return [mean] * calls


def increasing(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """Linear from noise to image; the last call gets `ratio` times the updates of the first. The sum is `total`."""
    return _share_out(total, [1 + (ratio - 1) * i / max(calls - 1, 1) for i in range(calls)])


def decreasing(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """The reverse of `increasing`."""
    return increasing(calls, mean, ratio, total)[::-1]


class ToTolerance:
    """Iterates each sample until its residual is small, with at most the plan's total of updates over the run.

    settings.tolerance: the residual to reach. At each call, a sample gets at least one update and at most
    `most_updates`.
    """

    def __init__(self, counts: Sequence[int], rows: int, device: torch.device, settings: Any):
        self.tolerance, self.most, self.calls = settings.tolerance, most_updates(settings), len(counts)
        self._left = torch.full((2 * rows,), sum(counts), device=device)  # updates of each row and its null-label row

    def request(self, call: int, rows: int) -> dict[str, Any]:
        # One update is reserved for each later call.
        most = (self._left[:rows] - (self.calls - 1 - call)).clamp(1, self.most)
        return {"iterations": most, "tolerance": self.tolerance}

    def observe(self, updates: Tensor) -> None:
        self._left[: len(updates)] -= updates

    @staticmethod
    def explain(settings: Any) -> str:
        return (
            f"each image is iterated until its residual is at most {settings.tolerance:g}, with at most "
            f"{most_updates(settings)} iterations per timestep"
        )


ALLOCATIONS = {
    "constant": Allocation(constant, "the same at each timestep"),
    "increasing": Allocation(increasing, "more updates near the image", ratio=True),
    "decreasing": Allocation(decreasing, "more updates near the noise", ratio=True),
    "adaptive": Allocation(constant, "each image is iterated until its residual is at most `tolerance`", ratio=True,
                           at_run_time=ToTolerance),
}  # fmt: skip


def most_updates(settings: Any) -> int:
    """The maximum number of updates of one call under adaptive allocation: `ratio` times the mean."""
    return math.ceil(settings.ratio * (settings.iterations or DEFAULT_ITERATIONS))


def spread_evenly(total: int, calls: int) -> list[int]:
    """`total` updates over `calls` model calls; the counts differ by at most 1."""
    return [(total * (i + 1)) // calls - (total * i) // calls for i in range(calls)]


def _share_out(total: int, weights: list[float]) -> list[int]:
    """Whole numbers of at least 1, proportional to ascending `weights`, with the sum `total`.

    Shares below 1 are set to 1, and the others share the rest. Rounding by largest remainder keeps the order.
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
