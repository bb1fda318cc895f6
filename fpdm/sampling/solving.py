"""How a run solves for the fixed points: where each solve starts (the solutions before it, reused (Sec. 3.3), damped,
extrapolated), and how it goes on from there.

B batch, N tokens, D width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.config import check_range

FARTHEST = 3.0  # times the way between the two solutions, where a scheduler's timesteps are very unevenly spaced
MOST_MEMORY = 5
Start = Tensor | Callable[[Tensor], Tensor]


class Solving(NamedTuple):
    """Settings of the solves of one run.

    reuse: start each solve from the previous call's solution; None for yes where the model has an implicit layer.
    reuse_weight: of that solution in the start, 1 for all of it, against the start of a solve without reuse.
    extrapolation: how far to start along the line through the last two solutions: 0 at the last one, 1 at the new
        timestep.
    anderson: memory of Anderson acceleration, 1 to 5; 0 for plain iteration.
    """

    reuse: bool | None = None
    reuse_weight: float = 1.0
    extrapolation: float = 0.0
    anderson: int = 0

    def check(self) -> None:
        """ValueError for numbers out of range, or that contradict each other."""
        if not 0 <= self.anderson <= MOST_MEMORY:
            remedy = f"a memory of 1 to {MOST_MEMORY} updates, or 0 for plain iteration"
            raise ValueError(f"anderson={self.anderson}: {remedy}")
        if not 0 < self.reuse_weight <= 1:
            raise ValueError(f"reuse_weight={self.reuse_weight}: above 0, at most 1; for none of it, reuse false")
        check_range(0, 1, extrapolation=self.extrapolation)
        if self.reuse is False and (self.reuse_weight != 1 or self.extrapolation):
            name = "extrapolation" if self.extrapolation else "reuse_weight"
            raise ValueError(f"{name}={getattr(self, name)} with reuse=false: there is no solution to start from")

    def check_model(self, iterative: bool) -> None:
        """ValueError for settings that a model without an implicit layer does not have."""
        for name, value in self._asdict().items():
            if not iterative and value and value != self._field_defaults[name]:
                said = "true" if value is True else value
                raise ValueError(f"{name}={said}: an explicit model (DiT) has no implicit layer to solve; leave it out")


class Starts:
    """The solutions of one run, and the starts made of them.

    weight: of the solution against the pre blocks' output, from which a solve would start without
        reuse: 1 is the paper's reuse.
    extrapolation: how far to go on along the line through the last two solutions, 1 for all the
        way to the new timestep, 0 for staying at the last solution. The line is over the angle
        arccos sqrt(alpha_bar), in which x moves at a constant rate where x0 and the noise are fixed.
    """

    def __init__(self, weight: float = 1.0, extrapolation: float = 0.0):
        self.weight, self.extrapolation = weight, extrapolation
        self._last: tuple[float, Tensor] | None = None
        self._before: tuple[float, Tensor] | None = None

    def add(self, alpha_bar: float, solution: Tensor) -> None:
        """Remember a solution (B or 2B, N, D); one at the same timestep as the last takes its place."""
        now = angle(alpha_bar)
        if self._last is not None and self._last[0] != now and self.extrapolation:
            self._before = self._last
        self._last = (now, solution)

    def at(self, alpha_bar: float, batch: int) -> Start | None:
        """Start of a solve for `batch` rows, as the model's `init` takes it; None before the first solution."""
        if self._last is None:
            return None
        then, last = self._last
        start = fitting(last, batch)
        if self._before is not None:
            earlier, before = self._before
            way = min(self.extrapolation * (angle(alpha_bar) - then) / (then - earlier), FARTHEST)
            both = min(len(last), len(before), batch)  # where guidance has just begun, the null rows have no line yet
            start = torch.cat([start[:both] + way * (start[:both] - before[:both]), start[both:]])
        if self.weight == 1:
            return start
        return lambda x_pre: x_pre + self.weight * (start - x_pre)


def angle(alpha_bar: float) -> float:
    """0 for an image, pi / 2 for pure noise."""
    return math.acos(math.sqrt(alpha_bar))


def fitting(solution: Tensor, batch: int) -> Tensor:
    """Solutions (B or 2B, N, D) for a batch of B or 2B: guidance begins from the conditional one for both."""
    if len(solution) == batch:
        return solution
    return solution.repeat(2, 1, 1) if len(solution) < batch else solution[:batch]
