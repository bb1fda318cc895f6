"""Where solves start: solutions reused, damped, extrapolated."""

import pytest
import torch

from fpdm.sampling.solving import Starts


def solution(value: float, batch: int = 2) -> torch.Tensor:
    return torch.full((batch, 3, 4), value)


def test_the_first_solve_starts_from_the_pre_blocks():
    assert Starts().at(0.5, 2) is None


def test_reuse_is_the_last_solution_itself():
    starts = Starts()
    for value in (1.0, 2.0):
        starts.add(value / 10, solution(value))
    assert torch.equal(starts.at(0.9, 2), solution(2.0))


def test_damped_reuse_lies_between_the_pre_blocks_output_and_the_solution():
    starts = Starts(weight=0.75)
    starts.add(0.2, solution(4.0))
    torch.testing.assert_close(starts.at(0.3, 2)(solution(0.0)), solution(3.0))


@pytest.mark.parametrize(("amount", "expected"), [(1.0, 7.0), (0.5, 5.5)])
def test_solutions_linear_in_the_angle_are_foretold(amount, expected):
    """4 at 1.2 and 1 at 1.4: a line of slope -15, 7 at 1.0; half the way from 4 is 5.5."""
    starts = Starts(extrapolation=amount)
    starts.add(1.4, solution(1.0))
    assert torch.equal(starts.at(1.2, 2), solution(1.0))  # one solution is no line
    starts.add(1.2, solution(4.0))
    torch.testing.assert_close(starts.at(1.0, 2), solution(expected))


def test_a_second_call_at_the_same_timestep_takes_the_place_of_the_first():
    """As solvers with two model calls a step make them: no line through two solutions of one timestep."""
    starts = Starts(extrapolation=1.0)
    starts.add(1.4, solution(1.0))
    starts.add(1.2, solution(9.0))
    starts.add(1.2, solution(4.0))
    torch.testing.assert_close(starts.at(1.0, 2), solution(7.0))
    torch.testing.assert_close(starts.at(1.2, 2), solution(4.0))


def test_guidance_that_begins_or_ends_keeps_the_conditional_solution():
    starts = Starts(extrapolation=1.0)
    starts.add(1.4, solution(1.0))
    starts.add(1.2, torch.cat([solution(4.0), solution(50.0)]))
    assert starts.at(1.0, 2).shape == (2, 3, 4)
    torch.testing.assert_close(starts.at(1.0, 2), solution(7.0))
    null = starts.at(1.0, 4)[2:]
    torch.testing.assert_close(null, solution(50.0))  # there is one solution of it, and one is no line


def test_lines_are_not_followed_beyond_all_measure():
    """Two timesteps close to each other, then one far away, as some schedulers have them."""
    starts = Starts(extrapolation=1.0)
    starts.add(1.201, solution(1.0))
    starts.add(1.2, solution(1.1))
    torch.testing.assert_close(starts.at(1.0, 2), solution(1.4))
