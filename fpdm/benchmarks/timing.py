"""Times of alternatives, measured in turn, so that a slower machine affects all of them equally."""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from fpdm.precision import PRECISIONS

LEAST = 0.1  # minimum seconds of one measurement; shorter work is repeated


class Bench(NamedTuple):
    """Device and settings of a measurement. precision: no, bf16 or fp16. repeats: of which the median is taken."""

    device: torch.device
    precision: str
    repeats: int

    def autocast(self) -> AbstractContextManager:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def dtype_of(precision: str) -> torch.dtype:
    """The type of tensors in a precision (no, bf16, fp16)."""
    return PRECISIONS[precision] or torch.float32


class Question(NamedTuple):
    """cases: each is measured separately, measure(bench, **case) -> numbers by name. table: rows, each a case with its
    numbers, -> Markdown."""

    title: str
    cases: list[dict]
    measure: Callable[..., dict]
    table: Callable[[list[dict]], str]


class Times(NamedTuple):
    """Seconds per call. first: the first call, with compilation and set-up; the others: later calls. rounds: all of
    these, in the order in which they were measured."""

    first: float
    median: float
    least: float
    most: float
    rounds: tuple[float, ...]

    def against(self, other: "Times") -> list[float]:
        """The quartiles of this time divided by the other's of the same round: where the machine becomes slower between
        rounds, this hardly changes them."""
        pairs = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)]
        return statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3


def alternate(
    bench: Bench, works: dict[str, Callable[[], Any]], around: Callable[[], AbstractContextManager] = nullcontext
) -> dict[str, Times]:
    """Time each piece of work `repeats` times, in turn; every second round is in reverse order.

    around: a context entered once per measurement. RuntimeError if anything is compiled again after the warm-up.
    """

    def timed(work: Callable[[], Any], calls: int) -> float:
        with around():
            return _seconds(bench.device, work, calls)

    firsts = {name: timed(work, 1) for name, work in works.items()}
    calls = {name: max(1, math.ceil(LEAST / timed(work, 1))) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.compiler.set_stance("fail_on_recompile"):
        for repeat in range(bench.repeats):
            for name in list(works)[:: -1 if repeat % 2 else 1]:
                seconds[name].append(timed(works[name], calls[name]) / calls[name])
    return {name: Times(firsts[name], statistics.median(s), min(s), max(s), tuple(s)) for name, s in seconds.items()}


def _seconds(device: torch.device, work: Callable[[], Any], calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def matrix_product(bench: Bench) -> tuple[Callable[[], Any], int]:
    """A large matrix product in the bench's precision, and its FLOPs: the peak rate of the machine."""
    size = 8192 if bench.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype_of(bench.precision)) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def copying(bench: Bench) -> tuple[Callable[[], Any], int]:
    """A large copy, and the bytes it reads and writes."""
    source = torch.empty(2**29 if bench.device.type == "cuda" else 2**26, dtype=torch.float32, device=bench.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes
