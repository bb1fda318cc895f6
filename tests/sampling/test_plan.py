import pytest

from fpdm.cost import ForwardCost
from fpdm.processes.times import DiscreteTimes, Spacing
from fpdm.sampling.allocation import spread_evenly
from fpdm.sampling.plan import Step, describe, make_plan, plan_of_counts


@pytest.mark.parametrize(("iterations", "timesteps"), [(1, 93), (4, 46), (26, 10), (68, 4)])
def test_smoothing_at_280_passes(iterations, timesteps):
    plan = make_plan(ForwardCost(2, 1), budget=280, iterations=iterations)
    assert len(plan.steps) == timesteps
    assert 280 - (2 + iterations) < plan.block_passes <= 280
    assert plan.iterations == [iterations] * timesteps


def test_explicit_model():
    plan = make_plan(ForwardCost(28), budget=560)
    assert len(plan.steps) == 20 and plan.block_passes == 560
    assert plan.steps[0].iterations is None


@pytest.mark.parametrize("steps", [20, 93])
@pytest.mark.parametrize("kind", ["eps", "v_zsnr"])
def test_timesteps_are_the_published_ones(recorded, kind, steps):
    assert DiscreteTimes().spaced(steps) == recorded("diffusion")[f"{kind}/timesteps_{steps}"].tolist()


def test_every_number_of_steps():
    for steps in range(1, 1001):
        times = DiscreteTimes().spaced(steps)
        assert len(times) == len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert times[0] == 999 and (steps == 1 or times[-1] == 0)


def test_next_timestep_is_the_following_one():
    plan = make_plan(ForwardCost(2, 1), steps=3, iterations=2)
    assert plan.steps == (Step(999, 500, 2), Step(500, 0, 2), Step(0, DiscreteTimes.clean, 2))


@pytest.mark.parametrize(("budget", "iterations"), [(3, 1), (60, 3), (61, 58), (97, 8), (280, 1), (280, 4), (560, 26)])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0, 12.0])
def test_allocations_spend_the_budget_exactly(budget, iterations, ratio):
    up = make_plan(ForwardCost(2, 1), budget=budget, iterations=iterations, allocation="increasing", ratio=ratio)
    down = make_plan(ForwardCost(2, 1), budget=budget, iterations=iterations, allocation="decreasing", ratio=ratio)
    assert up.block_passes == down.block_passes == budget
    assert min(up.iterations) >= 1
    assert up.iterations == sorted(up.iterations)
    assert down.iterations == up.iterations[::-1]
    assert len(up.steps) == len(make_plan(ForwardCost(2, 1), budget=budget, iterations=iterations).steps)


def test_ratio_is_largest_over_smallest():
    plan = make_plan(ForwardCost(2, 1), budget=10 * 102, iterations=100, allocation="increasing", ratio=4.0)
    assert plan.iterations[0] == 40 and plan.iterations[-1] == 160


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget": 9, "iterations": 8}, "budget=9 does not hold one timestep of 10 block passes"),
        ({"budget": 5000, "iterations": 1}, "1666 steps, but the model has 1000"),
        ({"steps": 1001, "iterations": 1}, "1001 steps"),
        ({"budget": 100, "iterations": 0}, "iterations=0"),
        ({"budget": 100, "steps": 5, "iterations": 1}, "give one of the two"),
        ({"iterations": 1}, "give one of the two"),
        ({"budget": 100, "iterations": 2, "allocation": "random"}, "allocation='random'"),
    ],
)
def test_impossible_plans_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        make_plan(ForwardCost(2, 1), **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget": 100, "allocation": "increasing"}, "no iterations to allocate"),
        ({"budget": 100, "iterations": 3}, "iterations=3: an explicit model"),
    ],
)
def test_explicit_models_have_no_iterations(arguments, says):
    with pytest.raises(ValueError, match=says):
        make_plan(ForwardCost(28), **arguments)
    with pytest.raises(ValueError, match=r"counts=\[1, 2\]: an explicit model"):
        plan_of_counts(ForwardCost(28), [1, 2])


def test_description():
    text = describe(make_plan(ForwardCost(2, 1), budget=280, iterations=8), 2_500_000_000)
    assert "28 timesteps (999..0)" in text
    assert "8 iterations each" in text and "280 block passes" in text and "2.500 GFLOPs per image" in text
    assert "1 to 5 iterations" in describe(plan_of_counts(ForwardCost(2, 1), [2, 5, 1]), 0)
    assert "6 to 2 iterations" in describe(
        make_plan(ForwardCost(2, 1), budget=280, iterations=4, allocation="decreasing"), 0
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 999, 1000])
def test_timesteps_that_end_above_zero(steps):
    """As many as asked for, from the top, evenly: those of one step more without its 0."""
    times = DiscreteTimes().spaced(steps, Spacing(down_to_zero=False))
    assert len(times) == len(set(times)) == steps and times[0] == 999
    if 1 < steps < 1000:
        assert [*times, 0] == DiscreteTimes().spaced(steps + 1)


def test_two_calls_a_step_visit_all_timesteps_but_the_first_twice():
    plan = make_plan(ForwardCost(2, 1), budget=60, iterations=4, spacing=Spacing(two_calls=True))
    times = DiscreteTimes().spaced(5)
    assert plan.timesteps == [times[0], *(t for t in times[1:] for _ in range(2))]
    assert [step.t_next for step in plan.steps] == [*plan.timesteps[1:], -1]
    assert plan.block_passes == 54 and len(plan.steps) == 9
    assert "5 timesteps (999..0), 9 model calls" in describe(plan, 0)
    assert make_plan(ForwardCost(12), budget=60, spacing=Spacing(two_calls=True)).timesteps == [999, 500, 500, 0, 0]
    assert make_plan(ForwardCost(2, 1), steps=1, iterations=3, spacing=Spacing(two_calls=True)).timesteps == [999]
    ramp = make_plan(
        ForwardCost(2, 1), budget=54, iterations=4, spacing=Spacing(two_calls=True), allocation="decreasing"
    )
    assert ramp.block_passes == 54 and ramp.iterations[0] > ramp.iterations[-1]


def test_counts_of_two_calls_a_step_are_odd_in_number():
    assert len(plan_of_counts(ForwardCost(2, 1), [3, 2, 1], spacing=Spacing(two_calls=True)).steps) == 3
    with pytest.raises(ValueError, match="4 entries, but 2 steps of this solver have 3 model calls, 3 steps 5"):
        plan_of_counts(ForwardCost(2, 1), [1, 1, 1, 1], spacing=Spacing(two_calls=True))


@pytest.mark.parametrize(("total", "calls"), [(10, 5), (11, 5), (14, 5), (5, 5), (37, 12)])
def test_updates_are_spread_evenly(total, calls):
    counts = spread_evenly(total, calls)
    assert sum(counts) == total and len(counts) == calls and max(counts) - min(counts) <= 1
