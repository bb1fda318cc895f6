"""Reports to the host about each step: non-finite gradients and requests to stop. The host waits for the device only
when asked to, so that the device always has work queued."""

from collections import deque
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class Report(NamedTuple):
    """The state after one step (0 is the first). asked: whether any process was asked to stop; skipped: non-finite
    steps so far; in_a_row: how many in a row end with this step; longest: the most in a row so far."""

    step: int
    asked: bool
    skipped: int
    in_a_row: int
    longest: int


class Watch:
    """Counts on the device, copied to the host after each step's work and read one step later, when they have arrived.

    They are the same on every process, because gradients are equal and requests are summed. So all processes
    make the same decision at the same step.
    """

    def __init__(self, accelerator: Accelerator, skipped: int = 0, in_a_row: int = 0):
        self.accelerator = accelerator
        self._counts = torch.tensor([skipped, in_a_row, in_a_row], dtype=torch.float32, device=accelerator.device)
        self._posted: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque(maxlen=2)

    def post(self, step: int, finite: Tensor, asked: bool) -> None:
        """finite (): whether the step's gradients are finite, on the device; asked: whether this process is to stop."""
        bad = (~finite).to(self._counts.dtype)
        self._counts[:2] += bad
        self._counts[1] *= bad
        self._counts[2] = torch.maximum(self._counts[2], self._counts[1])
        requests = torch.full((1,), float(asked), dtype=self._counts.dtype, device=self._counts.device)
        values = torch.cat([self.accelerator.reduce(requests, "sum"), self._counts])
        if values.device.type != "cuda":
            self._posted.append((step, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._posted.append((step, host, arrived))

    def read(self, now: bool) -> Report:
        """The report of the latest step if `now`, which waits for it; otherwise of the step before."""
        step, values, arrived = self._posted[-1 if now else 0]
        if arrived is not None:
            arrived.synchronize()
        asked, *counts = values.tolist()
        return Report(step, asked > 0, *map(int, counts))
