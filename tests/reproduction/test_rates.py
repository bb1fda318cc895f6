"""Which learning rates are tried, and which is best."""

import math

import pytest

from fpdm.reproduction.rates import DIVERGED, best_rate, said, try_rates


def run(result, rates=(1.0, 2.0, 4.0)):
    asked = []

    def attempt(pairs):
        asked.append(pairs)
        return [result(rate) for _, rate in pairs]

    return try_rates(["a"], rates, attempt, float)["a"], asked


@pytest.mark.parametrize(
    ("best", "tried"),
    [(2, [1, 2, 4]), (1, [0.5, 1, 2, 4]), (0.2, [0.25, 0.5, 1, 2, 4]), (9, [1, 2, 4, 8, 16]), (8, [1, 2, 4, 8, 16])],
)
def test_the_edges_are_extended_at_most_twice(best, tried):
    found, asked = run(lambda rate: abs(math.log(rate / best)))
    assert list(found) == tried and len(asked) <= 3
    assert len([pair for pairs in asked for pair in pairs]) == len(tried)  # each once
    assert best_rate(found, float) == min(tried, key=lambda rate: abs(math.log(rate / best)))


def test_what_diverges_is_the_worst():
    found, _ = run(lambda rate: DIVERGED if rate > 1 else 3.0)
    assert list(found) == [0.25, 0.5, 1, 2, 4] and best_rate(found, float) == 0.25
    found, _ = run(lambda rate: DIVERGED)
    assert list(found) == [0.25, 0.5, 1, 2, 4] and found[best_rate(found, float)] == DIVERGED
    assert said(DIVERGED) == "diverged" and said(1.234) == "1.23"


def test_every_name_has_its_own_rates():
    def attempt(pairs):
        return [abs(math.log(rate / (1 if name == "low" else 2))) for name, rate in pairs]

    found = try_rates(["low", "middle"], (1.0, 2.0, 4.0), attempt, float)
    assert list(found["low"]) == [0.5, 1, 2, 4] and list(found["middle"]) == [1, 2, 4]
