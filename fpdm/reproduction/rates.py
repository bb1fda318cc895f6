"""The best learning rate of several networks, by short trainings; further rates are tried where the best is an edge."""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

MORE = 2  # further learning rates that are tried beyond the given ones
DIVERGED = math.inf  # the result of a training that diverged: worse than any other
T = TypeVar("T")


def try_rates(
    names: Iterable[str],
    rates: Iterable[float],
    attempt: Callable[[list[tuple[str, float]]], list[T]],
    result: Callable[[T], float],
) -> dict[str, dict[float, T]]:
    """Trials of each rate for each name, in the order of the rates.

    attempt: trains (name, rate) pairs; returns one trial for each. result: of a trial, lower is better. Where the best
    rate is the lowest or the highest, half or twice of it is tried too, at most MORE times. If all diverge, that is
    below the lowest.
    """
    wanted = {name: sorted(rates) for name in names}
    found: dict[str, dict[float, T]] = {name: {} for name in wanted}
    for left in reversed(range(MORE + 1)):
        pairs = [(name, rate) for name, some in wanted.items() for rate in some]
        for (name, rate), trial in zip(pairs, attempt(pairs), strict=True):
            found[name][rate] = trial
        found = {name: dict(sorted(trials.items())) for name, trials in found.items()}
        wanted = {name: _beyond(trials, result) for name, trials in found.items()} if left else {}
    return found


def best_rate(trials: dict[float, T], result: Callable[[T], float]) -> float:
    """The rate of the best trial, the lowest of equals."""
    return min(trials, key=lambda rate: result(trials[rate]))


def said(value: float, form: str = ".2f") -> str:
    """A trial's result for a table."""
    return "diverged" if value == DIVERGED else format(value, form)


def _beyond(trials: dict[float, T], result: Callable[[T], float]) -> list[float]:
    tried, best = list(trials), best_rate(trials, result)
    return [best / 2] if best == tried[0] else [2 * best] if best == tried[-1] else []
