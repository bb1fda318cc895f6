"""Allocations: how many updates of the implicit layer each model call of a sampling run gets (Sec. 3.3).

Most are settled in the plan, before any tensor exists. One at run time asks for updates call by call, and sees how many
were made. To add an allocation, add an entry to ALLOCATIONS.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

DEFAULT_ITERATIONS = 4  # the paper's optimum at 280 block passes is 4 to 8 (Fig. 4)


class RunTimeAllocation(Protocol):
    """Of one run, for the rows of its batch: samples, or twice as many where guidance doubles them."""

    def request(self, call: int, rows: int) -> dict[str, Any]:
        """Arguments of the model for the first `rows` rows at this call; they replace the plan's iterations."""

    def observe(self, output: Any) -> None:
        """See what the model returned."""


class Allocation(NamedTuple):
    """counts: (calls, mean updates of a call, ratio, updates in all) -> updates of each call, from noise to image.

    about: what it does, for the help. ratio: whether it takes one. at_run_time: made of (updates of each call in the
    plan, rows, device, sampling settings) for one run; the plan's counts then say how many there are in all.
    """

    counts: Callable[[int, int, float, int], list[int]]
    about: str
    ratio: bool = False
    at_run_time: Callable[[Sequence[int], int, torch.device, Any], RunTimeAllocation] | None = None


def constant(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """The same at each call."""
    return [mean] * calls


def increasing(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """Linear from noise to image, the last `ratio` times the first; `total` exactly."""
    return _share_out(total, [1 + (ratio - 1) * i / max(calls - 1, 1) for i in range(calls)])


def decreasing(calls: int, mean: int, ratio: float, total: int) -> list[int]:
    """The reverse of `increasing`."""
    return increasing(calls, mean, ratio, total)[::-1]


class ToTolerance:
    """Each sample is iterated until its residual is small, and its updates over the run are at most the plan's.

    settings.tolerance: the residual; at a call a sample gets at least one update and at most `most_updates`.
    """

    def __init__(self, counts: Sequence[int], rows: int, device: torch.device, settings: Any):
        self.tolerance, self.most, self.calls = settings.tolerance, most_updates(settings), len(counts)
        self._left = torch.full((2 * rows,), sum(counts), device=device)  # updates, of each row and its guided twin

    def request(self, call: int, rows: int) -> dict[str, Any]:
        # One update is kept back for each call to come.
        most = (self._left[:rows] - (self.calls - 1 - call)).clamp(1, self.most)
        return {"iterations": most, "tolerance": self.tolerance}

    def observe(self, output: Any) -> None:
        self._left[: len(output.counts)] -= output.counts


ALLOCATIONS = {
    "constant": Allocation(constant, "the same at each timestep"),
    "increasing": Allocation(increasing, "growing from noise to image", ratio=True),
    "decreasing": Allocation(decreasing, "shrinking from noise to image", ratio=True),
    "adaptive": Allocation(constant, "each image is iterated until its residual is at most `tolerance`", ratio=True,
                           at_run_time=ToTolerance),
}  # fmt: skip


def most_updates(settings: Any) -> int:
    """The most updates of one call under adaptive allocation: `ratio` times the mean."""
    return math.ceil(settings.ratio * (settings.iterations or DEFAULT_ITERATIONS))


def spread_evenly(total: int, calls: int) -> list[int]:
    """`total` updates over so many model calls, as nearly alike as whole numbers can be."""
    return [(total * (i + 1)) // calls - (total * i) // calls for i in range(calls)]


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
