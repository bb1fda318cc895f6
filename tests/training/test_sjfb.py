from collections import Counter

import pytest

from fpdm.config import SJFBConfig
from fpdm.training.sjfb import draw_iterations, mean_iterations


def test_stochastic_draws_are_uniform():
    config = SJFBConfig("stochastic", no_grad=3, grad=4)
    draws = [draw_iterations(config, 0, step) for step in range(8000)]
    for values, expected in (([d.n for d in draws], range(4)), ([d.m for d in draws], range(1, 5))):
        counts = Counter(values)
        assert sorted(counts) == list(expected)
        assert all(abs(count - 2000) < 200 for count in counts.values())
    joint = Counter(draws)
    assert len(joint) == 16 and max(joint.values()) < 620  # n and m are independent
    assert mean_iterations(config) == (1.5, 2.5)


def test_draws_are_a_function_of_seed_and_step():
    config = SJFBConfig("stochastic", no_grad=12, grad=12)
    a, again, b = ([draw_iterations(config, seed, step) for step in range(50)] for seed in (0, 0, 1))
    assert a == again != b


def test_fixed_variants():
    assert {draw_iterations(SJFBConfig("jfb", 6, 6), 0, s) for s in range(20)} == {(6, 1)}
    assert {draw_iterations(SJFBConfig("multi-step", 6, 5), 0, s) for s in range(20)} == {(6, 5)}
    assert mean_iterations(SJFBConfig("jfb", 6, 6)) == (6, 1)
    assert mean_iterations(SJFBConfig("multi-step", 6, 5)) == (6, 5)


@pytest.mark.parametrize(
    ("settings", "says"), [(("jfbb",), "jfb"), (("jfb", -1), "no_grad"), (("jfb", 1, 0), "grad=0")]
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        SJFBConfig(*settings)
