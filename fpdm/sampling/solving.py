"""How a run solves for the fixed points: the initial value of each solve (reuse of earlier solutions, Sec. 3.3; damped
or extrapolated), and acceleration.

B batch, N tokens, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.config import check_range

FARTHEST = 3.0  # limit in units of the last two solutions' distance; schedulers can have very uneven timesteps
MOST_MEMORY = 5
Start = Tensor | Callable[[Tensor], Tensor]


class Solving(NamedTuple):
    """Settings of the solves of one run.

    reuse: start each solve from the previous call's solution; None: as the model says, which knows how it was trained.
    reuse_weight: weight of that solution in the initial value, above 0 and at most 1; the rest is the initial value
        without reuse.
    extrapolation: how far to start along the line through the last two solutions: 0 is the last one, 1 is the new
        timestep.
    anderson: memory of Anderson acceleration, 1 to 5; 0 for plain iteration.
    """

    reuse: bool | None = None
    reuse_weight: float = 1.0
    extrapolation: float = 0.0
    anderson: int = 0

    def check(self) -> None:
        """ValueError for numbers that are out of range or contradict each other."""
        if not 0 <= self.anderson <= MOST_MEMORY:
            remedy = f"a memory of 1 to {MOST_MEMORY} updates, or 0 for plain iteration"
            raise ValueError(f"anderson={self.anderson}: {remedy}")
        if not 0 < self.reuse_weight <= 1:
            raise ValueError(f"reuse_weight={self.reuse_weight}: above 0, at most 1; for no reuse, give reuse false")
        check_range(0, 1, extrapolation=self.extrapolation)
        if self.reuse is False and (self.reuse_weight != 1 or self.extrapolation):
            name = "extrapolation" if self.extrapolation else "reuse_weight"
            raise ValueError(
                f"{name}={getattr(self, name)} with reuse=false: no earlier solution is kept; leave one of the two out"
            )

    def check_model(self, iterative: bool, reuse: bool, reusable: bool) -> None:
        """ValueError for settings that the model does not support.

        iterative: whether it has an implicit layer. reuse: whether it reuses solutions by default; reusable: whether
        it can.
        """
        for name, value in self._asdict().items():
            if not iterative and value and value != self._field_defaults[name]:
                raise ValueError(
                    f"{_said(name, self)}: an explicit model (DiT) has no implicit layer to solve; leave it out"
                )
        needing = {"reuse": self.reuse, "extrapolation": self.extrapolation, "reuse_weight": self.reuse_weight != 1}
        asked = next((name for name, given in needing.items() if given), None)
        if asked and iterative and not reusable:
            raise ValueError(
                f"{_said(asked, self)}: this model has model.injection=none, so a solve that starts from an older "
                "solution would not see the new input; leave it out"
            )
        if asked and iterative and self.reuse is None and not reuse:
            raise ValueError(
                f"{_said(asked, self)}: this model was not trained to start from earlier solutions, so it does not "
                "unless told to; give reuse true as well, or leave it out"
            )


def _said(name: str, solving: Solving) -> str:
    value = getattr(solving, name)
    return f"{name}={'true' if value is True else value}"


class Starts:
    """The last solutions of one run, and the initial values computed from them.

    weight: of the solution; the rest is the pre blocks' output, the initial value without reuse. 1 is the paper's
        reuse.
    extrapolation: how far to extrapolate along the line through the last two solutions: 0 stays at the last solution,
        1 goes to the new timestep. The line is over the noise level's `place`, in which a path with fixed x0 and noise
        has constant speed.
    """

    def __init__(self, weight: float = 1.0, extrapolation: float = 0.0):
        self.weight, self.extrapolation = weight, extrapolation
        self._last: tuple[float, Tensor] | None = None
        self._before: tuple[float, Tensor] | None = None

    def add(self, place: float, solution: Tensor) -> None:
        """Store a solution (B or 2B, N, D). It replaces the last one if the place is the same."""
        if self._last is not None and self._last[0] != place and self.extrapolation:
            self._before = self._last
        self._last = (place, solution)

    def at(self, place: float, batch: int) -> Start | None:
        """The initial value of a solve for `batch` rows, for the model's `init`; None before the first solution."""
        if self._last is None:
            return None
        then, last = self._last
        start = fitting(last, batch)
        if self._before is not None:
            earlier, before = self._before
            way = min(self.extrapolation * (place - then) / (then - earlier), FARTHEST)
            both = min(len(last), len(before), batch)  # when guidance begins, the null rows have only one solution
            start = torch.cat([start[:both] + way * (start[:both] - before[:both]), start[both:]])
        if self.weight == 1:
            return start
        return lambda x_pre: x_pre + self.weight * (start - x_pre)


def fitting(solution: Tensor, batch: int) -> Tensor:
    """Solutions (B or 2B, N, D) for a batch of B or 2B. When guidance begins, the conditional one is used for both."""
    if len(solution) == batch:
        return solution
    return solution.repeat(2, 1, 1) if len(solution) < batch else solution[:batch]
