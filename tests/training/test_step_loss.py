"""What training minimises beside the last iterate's loss, against the same written out; growth; equal on any ranks."""

import json
import math

import pytest
import torch
from torch import nn

from fpdm.config import ExperimentConfig, ModelConfig, SJFBConfig
from fpdm.models import DiT, FixedPointDiT, build_model, forward_cost
from fpdm.processes import Diffusion
from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.describe import describe_cost, expected_memory, phases
from fpdm.training.draws import Draws, draw_normal
from fpdm.training.loop import train
from fpdm.training.objective import Objective
from fpdm.training.sjfb import (
    Exit,
    Work,
    draw_iterations,
    largest_iterations,
    mean_depth,
    mean_iterations,
    plan_step,
    work_cost,
)
from fpdm.training.step_loss import Batch, StepLoss, draw_beside, noise_like, swap_neighbours, without_gradients

GROW = [[0, 1], [0.4, 2], [0.65, 4]]
DIT = {"name": "DiT-XS/4", "depth": 2}
D = 32


def network(kind=FixedPointDiT, **settings):
    torch.manual_seed(0)
    sizes = {"input_size": 4, "in_channels": 3, "hidden_size": D, "num_heads": 2, "num_classes": 3}
    model = kind(**sizes | settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(size=4, tokens=4, width=D):
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(size, *shape, generator=generator)  # noqa: E731
    t = torch.tensor([999, 700, 30, 0])[:size]
    draws = Draws(t, normal(3, 4, 4), normal(3, 4, 4), torch.zeros(size, dtype=torch.bool), normal(tokens, width),
                  torch.tensor([0.0, 1.0, 0.5, 0.2])[:size], normal(tokens, width))  # fmt: skip
    return Batch(normal(3, 4, 4), torch.arange(size) % 3, draws)


def step_loss(model, **sjfb):
    diffusion = Diffusion()
    return StepLoss(ExperimentConfig(sjfb=SJFBConfig(**sjfb)), model, model, diffusion, Objective(diffusion))


def losses(model, data, prediction):
    return Diffusion().losses(prediction, data.x0, data.draws.noise, data.draws.t)


def inputs(data):
    return Diffusion().add_noise(data.x0, data.draws.noise, data.draws.t), data.draws.t, data.y


def test_the_plain_loss_is_the_diffusions():
    model, data = network(), batch()
    found = step_loss(model)(data, Work(2, 3), with_residual=True)
    output = model(*inputs(data), iterations=3, iterations_no_grad=2, with_residuals=True)
    torch.testing.assert_close(found.minimised, losses(model, data, output.prediction).total)
    torch.testing.assert_close(found.residual, output.residuals[:, -1])
    assert not step_loss(model).minimises_more


def test_earlier_iterates_are_trained_with_their_weights():
    model, data = network(), batch()
    work = Work(1, 3, exits=(Exit(3, 0.5), Exit(4, 0.25)))  # after the second update and the third
    found = step_loss(model, supervise="random")(data, work)
    expected = sum(weight * losses(model, data, model(*inputs(data), iterations=count).prediction).total
                   for count, weight in ((2, 0.5), (3, 0.25), (4, 1)))  # fmt: skip
    torch.testing.assert_close(found.minimised, expected)
    torch.testing.assert_close(
        found.losses.total, losses(model, data, model(*inputs(data), iterations=4).prediction).total
    )


def test_distillation_stops_the_gradient_of_the_last():
    """The earlier iterate moves towards the last; the last is moved by the target alone."""
    model, data = network(post_depth=0), batch()
    mean = lambda prediction: prediction[:, :3]  # noqa: E731
    last, early = (model(*inputs(data), iterations=count).prediction for count in (3, 1))
    distance = (mean(early) - mean(last)).square().flatten(1).mean(1)
    total = losses(model, data, last).total
    for share in (0.0, 0.3, 1.0):
        found = step_loss(model, supervise="distil")(data, Work(0, 3, exits=(Exit(2, 0.5, share),)))
        expected = total + 0.5 * (share * distance + (1 - share) * losses(model, data, early).total)
        torch.testing.assert_close(found.minimised, expected)
    model.zero_grad()
    found.minimised.sum().backward()
    ours = model.final_layer.linear.bias.grad.clone()
    model.zero_grad()
    (total + 0.5 * (mean(early) - mean(last).detach()).square().flatten(1).mean(1)).sum().backward()
    torch.testing.assert_close(ours, model.final_layer.linear.bias.grad)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(FixedPointDiT, {}), (FixedPointDiT, {"pre_depth": 0, "implicit_depth": 3}), (DiT, {"depth": 4})],
)
def test_the_early_head_is_trained_at_its_exit(kind, settings):
    model, data = network(kind, early_head=2, **settings), batch()
    config = SJFBConfig(early_head_weight=0.7, variant="multi-step", no_grad=0, grad=4)
    work = plan_step(config, model, 0, 0, 10)
    assert work.exits == (Exit(2, 0.7),)
    found = StepLoss(ExperimentConfig(sjfb=config), model, model, Diffusion(), Objective(Diffusion()))(data, work)
    forward = {} if kind is DiT else {"iterations": 4}
    output = model(*inputs(data), exits=(2,), **forward)
    expected = losses(model, data, output.prediction).total + 0.7 * losses(model, data, output.early[0]).total
    torch.testing.assert_close(found.minimised, expected)
    found.minimised.sum().backward()
    assert model.early_layer.linear.weight.grad.abs().max() > 0


def test_consistency_pulls_solutions_to_those_at_cleaner_timesteps():
    model, data = network(), batch()
    work = Work(1, 2, consistency=0.1)
    found = step_loss(model, consistency=0.1, consistency_gap=[0.1, 0.2])(data, work)
    x, t, y = inputs(data)
    cleaner = (t - torch.tensor([100, 200, 150, 120])).clamp(min=0)
    target = model(
        Diffusion().add_noise(data.x0, data.draws.noise, cleaner), cleaner, y, iterations=3
    ).solution.detach()
    output = model(x, t, y, iterations=2, iterations_no_grad=1)
    away = (output.solution - target).square().flatten(1).mean(1)
    assert away[0] > 0 and found.minimised.requires_grad
    torch.testing.assert_close(found.minimised, losses(model, data, output.prediction).total + 0.1 * away)


def test_exits_are_counted_from_where_a_solve_starts():
    """After the neighbour's solution, the first update with gradient is the first one, after one pre block."""
    config = SJFBConfig("multi-step", no_grad=3, grad=3, start=["other"], supervise="all")
    assert [one.number for one in plan_step(config, network(), 0, 0, 10).exits] == [2, 3]
    plain = SJFBConfig("multi-step", no_grad=3, grad=3, supervise="all")
    assert [one.number for one in plan_step(plain, network(), 0, 0, 10).exits] == [5, 6]


def test_consistency_rises_at_the_end():
    config = SJFBConfig(consistency=0.1, consistency_from=0.9)
    weights = [plan_step(config, network(), 0, step, 100).consistency for step in (0, 90, 95, 99)]
    assert weights == pytest.approx([0, 0, 0.05, 0.09])


def test_starts():
    model, data = network(), batch()
    x, t, y = inputs(data)
    noise = step_loss(model, start=["noise"])(data, Work(1, 2, start="noise"))
    output = model(x, t, y, iterations=3, init=noise_like(data.draws.start))
    torch.testing.assert_close(noise.minimised, losses(model, data, output.prediction).total)
    x_pre = torch.randn(4, 4, D) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    sizes = [part.square().mean(dim=(1, 2)).sqrt() for part in (noise_like(torch.randn(4, 4, D))(x_pre), x_pre)]
    torch.testing.assert_close(*sizes, rtol=0.35, atol=0)

    other = step_loss(model, start=["other"])(data, Work(2, 1, start="other"))
    solution = model(x, t, y, iterations=2).solution.detach()
    output = model(x, t, y, iterations=1, init=solution[[1, 0, 3, 2]])
    torch.testing.assert_close(other.minimised, losses(model, data, output.prediction).total)
    plain = step_loss(model)(data, Work(0, 3))
    torch.testing.assert_close(step_loss(model)(data, Work(0, 3, start="other")).minimised, plain.minimised)
    torch.testing.assert_close(swap_neighbours(solution), solution[[1, 0, 3, 2]])
    drawn = [plan_step(SJFBConfig(start=["input", "noise", "other"]), model, 0, step, 300).start for step in range(300)]
    assert {start: drawn.count(start) > 70 for start in drawn} == {"input": True, "noise": True, "other": True}


def test_jacobian_penalty_and_damping_reach_the_model():
    model, data = network(), batch()
    config = SJFBConfig(jacobian=0.2, variant="phantom", damping=0.3, no_grad=2, grad=2)
    work = plan_step(config, model, 0, 0, 10)
    assert (work.n, work.m) == (2, 2)
    found = StepLoss(ExperimentConfig(sjfb=config), model, model, Diffusion(), Objective(Diffusion()))(data, work)
    from fpdm.models.gradients import Gradient

    asked = Gradient(damping=0.3, jacobian=data.draws.jacobian)
    output = model(*inputs(data), iterations=2, iterations_no_grad=2, gradient=asked)
    expected = losses(model, data, output.prediction).total + 0.2 * output.jacobian
    torch.testing.assert_close(found.minimised, expected)


def test_growth_limits_all_updates():
    config = SJFBConfig("stochastic", no_grad=3, grad=3, grow=GROW)
    for done, most in ((0.0, 1), (0.39, 1), (0.4, 2), (0.64, 2), (0.65, 4), (0.99, 4)):
        drawn = [draw_iterations(config, 0, step, done) for step in range(300)]
        assert max(n + m for n, m in drawn) == most and min(m for _, m in drawn) == 1
    few = SJFBConfig("multi-step", no_grad=0, grad=4, grow=GROW)
    assert [draw_iterations(few, 0, 0, done) for done in (0, 0.5, 0.9)] == [(0, 1), (0, 2), (0, 4)]
    assert mean_iterations(few) == pytest.approx((0, 0.4 * 1 + 0.25 * 2 + 0.35 * 4)) and largest_iterations(few) == (
        0,
        4,
    )
    mean = mean_iterations(config)
    drawn = [draw_iterations(config, 0, step, step / 20_000) for step in range(20_000)]
    assert mean == pytest.approx([sum(part) / 20_000 for part in zip(*drawn, strict=True)], rel=0.03)


def test_without_growth_nothing_is_drawn_otherwise():
    config = SJFBConfig("stochastic", no_grad=5, grad=4)
    limitless = SJFBConfig("stochastic", no_grad=5, grad=4, grow=[[0, 9]])
    assert [draw_iterations(config, 3, step) for step in range(99)] == [
        draw_iterations(limitless, 3, step, 0.5) for step in range(99)
    ]


def test_a_dit_grows_block_by_block():
    model, config = network(DiT, depth=4), SJFBConfig(grow=[[0, 1], [0.5, 3]], supervise="all")
    early, late = (plan_step(config, model, 0, step, 10) for step in (0, 5))
    assert (early.depth, late.depth) == (1, 3) and mean_depth(config, 4) == 2
    assert early.exits == () and [one.number for one in late.exits] == [1, 2]
    found = step_loss(model, grow=[[0, 1]])(batch(), early)
    found.minimised.sum().backward()
    assert all(not p.grad.any() for block in model.blocks[1:] for p in block.parameters())
    shallow = network(DiT, depth=1)
    shallow.load_state_dict({name: value for name, value in model.state_dict().items() if name in shallow.state_dict()})
    data = batch()
    torch.testing.assert_close(found.minimised, losses(shallow, data, shallow(*inputs(data)).prediction).total)


def test_an_early_head_waits_for_its_block():
    model, config = network(DiT, depth=4, early_head=2), SJFBConfig(grow=[[0, 1], [0.5, 3]])
    early, late = (plan_step(config, model, 0, step, 10) for step in (0, 5))
    assert early.exits == () and late.exits == (Exit(2, 0.5),)
    loss = step_loss(model, grow=[[0, 1], [0.5, 3]])
    assert set(map(id, model.early_layer.parameters())) <= set(map(id, loss.unused(early)))
    loss(batch(), early).minimised.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not set(map(id, model.early_layer.parameters())) & set(map(id, loss.unused(late)))


@pytest.mark.parametrize(
    ("model", "sjfb", "optim", "said"),
    [
        ({"injection": "none"}, {"no_grad": 0, "start": ["noise"]}, {}, "sjfb.start=noise with model.injection=none"),
        (
            {"injection": "lanes"},
            {"no_grad": 1},
            {},
            "sjfb.no_grad=1 with model.injection=lanes: the input",
        ),
        ({}, {"variant": "jfb", "supervise": "random"}, {}, "sjfb.supervise=random: only one update of a step"),
        (
            {"injection": "none"},
            {"variant": "implicit", "no_grad": 0},
            {},
            "sjfb.variant=implicit with model.injection",
        ),
        ({}, {"start": ["input", "other"]}, {"micro_batch_size": 1}, "sjfb.start=other with 1 samples at a time"),
        ({}, {"grow": [[0, 1], [0.5, 5]]}, {}, "a step has at most 4 updates, so it would never grow to 5"),
        ({}, {"variant": "jfb", "grow": [[0, 1], [0.5, 4]]}, {}, "at most 3 updates, so it would never grow to 4"),
        (DIT, {"grow": [[0, 1], [0.5, 3]]}, {}, r"at most 2 blocks, so it would never grow to 3; .*model\.depth"),
        (
            {"early_head": 6},
            {},
            {},
            r"model\.early_head=6: a step has at most 4 updates, so its last exit is 5.*sjfb\.grad",
        ),
        ({"early_head": 3}, {"grow": [[0, 1]]}, {}, r"model\.early_head=3: a step has at most 1 updates.*exit is 2"),
        ({"early_head": 4}, {"start": ["other"]}, {}, r"model\.early_head=4: a step has at most 2 updates"),
        (
            {"injection": "decay", "implicit_depth": 2, "early_head": 2},
            {"variant": "implicit", "no_grad": 0},
            {},
            r"model\.early_head=2 with sjfb\.variant=implicit: this exit is inside an update.*as in 3",
        ),
        ({}, {"early_head_weight": 1.0}, {}, r"sjfb\.early_head_weight=1\.0 without model\.early_head"),
        (DIT | {"depth": 1}, {"supervise": "all"}, {}, "sjfb.supervise=all: this network has only one block"),
    ],
)
def test_starts_that_cannot_be_are_refused(experiment, model, sjfb, optim, said):
    with pytest.raises(ValueError, match=said):
        train(experiment(model=model, sjfb=sjfb, optim=optim))


def test_hidden_gradients_leave_parameters_and_their_state_alone():
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    with without_gradients(parameters[1:]):
        optimizer.step()
    assert torch.equal(parameters[1].detach(), torch.ones(2)) and parameters[1] not in optimizer.state
    assert torch.equal(parameters[1].grad, torch.ones(2)) and not torch.equal(parameters[0].detach(), torch.ones(2))


def test_costs_of_a_step():
    model = network(post_depth=2, early_head=3)
    cost, config = forward_cost(model), SJFBConfig()
    assert (cost.exit_blocks, cost.explicit_blocks) == (2, 3)
    passes, flops = work_cost(Work(2, 3), cost, config, 3)
    assert (passes, flops) == (8, cost.training_flops(2, 3))
    more, dearer = work_cost(Work(2, 3, exits=(Exit(1, 1.0), Exit(3, 1.0))), cost, config, 3)
    assert (more, dearer) == (10, flops + 3 * (cost.exit_flops + cost.head_flops))
    assert cost.exit_flops > cost.head_flops > 0
    assert work_cost(Work(2, 3, start="other", consistency=0.1), cost, config, 3)[0] == 8 + 3 + 8


def test_memory_and_cost_of_growth_and_supervision():
    config = ExperimentConfig(ModelConfig("FPDM-XS/2"), sjfb=SJFBConfig("multi-step", 0, 4, grow=GROW))
    model = build_model("FPDM-XS/2", input_size=4)
    assert [(phase.n, round(phase.m, 2)) for phase in phases(config.sjfb, model)] == [(0, 2.3), (0, 4)]
    plain = [expected_memory(config, model, 4, False, phase).activations for phase in phases(config.sjfb, model)]
    config.sjfb.supervise = "all"
    more = [expected_memory(config, model, 4, False, phase).activations for phase in phases(config.sjfb, model)]
    assert plain[0] < plain[1] and more[1] > 1.3 * plain[1]
    dit = build_model("DiT-XS/2", input_size=4, depth=4)
    config = ExperimentConfig(ModelConfig("DiT-XS/2", depth=4), sjfb=SJFBConfig(grow=[[0, 1], [0.5, 4]]))
    said = describe_cost(config, dit, forward_cost(dit))
    assert "2.5 block passes forward per image" in said and "4 block passes" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"grow": [[0.1, 1]]}, "sjfb.grow"),
        ({"grow": [[0, 1], [0, 2]]}, "sjfb.grow"),
        ({"grow": [[0, 1.5]]}, "counts are whole"),
        ({"grow": [[0]]}, "pairs of a share of training"),
        ({"grow": [[0, 8], [0.5, 1]]}, "must not fall"),
        ({"start": ["other"], "no_grad": 0}, "sjfb.start=other with sjfb.no_grad=0"),
        ({"consistency": 0.1, "consistency_from": 1.0}, "its weight would always be 0"),
        ({"adjoint_tolerance": 0.0}, "must be positive"),
        ({"supervise": "none"}, "sjfb.supervise='none': choose one of last, random, all, distil"),
        ({"supervise_weight": 0.5}, "with sjfb.supervise=last: no earlier iterate is trained"),
        ({"start": []}, "sjfb.start"),
        ({"start": ["x"]}, "sjfb.start='x': choose one of input, noise, other"),
        ({"consistency_gap": [0.3, 0.1]}, "the lowest and the highest"),
        ({"damping": 0.0}, "sjfb.damping=0.0: above 0, at most 1"),
        ({"damping": 0.3}, "sjfb.damping=0.3 with sjfb.variant=stochastic: only phantom uses it"),
        ({"adjoint": "broyden", "variant": "jfb"}, "sjfb.adjoint=broyden with sjfb.variant=jfb: only implicit uses it"),
        ({"adjoint_tolerance": 0.1}, "sjfb.adjoint_tolerance=0.1 with sjfb.variant=stochastic"),
        ({"adjoint_iterations": 3}, "sjfb.adjoint_iterations=3 with sjfb.variant=stochastic"),
        ({"consistency_gap": [0.1, 0.2]}, r"sjfb.consistency_gap=\[0.1, 0.2\] with sjfb.consistency=0"),
        ({"consistency_from": 0.5}, "sjfb.consistency_from=0.5 with sjfb.consistency=0: nothing uses it"),
        ({"adjoint": "newton"}, "sjfb.adjoint='newton': choose one of fixed-point, anderson, broyden"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SJFBConfig(**settings)


WAYS = {
    "grow, random, jacobian": {
        "variant": "multi-step", "no_grad": 0, "grad": 3, "grow": [[0, 1], [0.5, 3]], "supervise": "random",
        "jacobian": 0.1,
    },
    "all, starts": {"supervise": "all", "grad": 3, "start": ["noise", "other"]},
    "distil, consistency, phantom": {
        "supervise": "distil", "grad": 3, "consistency": 0.1, "consistency_from": 0.5, "variant": "phantom",
    },
    "implicit": {"variant": "implicit", "adjoint_tolerance": 1e-5},
}  # fmt: skip


def weights(run):
    trainer = load_trainer(find_checkpoint(run))
    return trainer["optimizer"]["state"]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_and_resumes_bit_for_bit(experiment, way):
    """Six steps in one go, and three of them twice; also in micro-batches, up to rounding."""
    # The adjoint equation has a stable solution only where updates contract.
    model = {"implicit_depth": 2, "injection": "decay" if way == "implicit" else "add", "early_head": 1}
    optim = {"steps": 6, "warmup": 0, "lr": 1e-2}
    whole = train(experiment(model=model, sjfb=WAYS[way], optim=optim, run={"checkpoint_every": 3}))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) and line["objective"] > 0 for line in lines)
    assert (way == "implicit") == ("adjoint_products" in lines[-1])
    again = train(experiment(model=model, sjfb=WAYS[way], optim=optim, run={"checkpoint_every": 3}), resume=str(
        whole / "checkpoints" / "0000003"))  # fmt: skip
    del again
    first = weights(whole)
    fresh = train(experiment(model=model, sjfb=WAYS[way], optim=optim))
    for key, values in weights(fresh).items():
        for name, value in values.items():
            assert torch.equal(value, first[key][name]), (key, name)
    parts = train(experiment(model=model, sjfb=WAYS[way], optim=optim | {"micro_batch_size": 2}))
    for key, values in weights(parts).items():
        torch.testing.assert_close(values["exp_avg"], first[key]["exp_avg"], atol=2e-4, rtol=2e-3)


def test_draws_beside_depend_on_seed_and_step_alone():
    model = network()
    config = ExperimentConfig(sjfb=SJFBConfig(jacobian=0.1))
    config.optim.batch_size = 8
    work = Work(1, 1, start="noise", consistency=0.1)
    device = torch.device("cpu")
    whole = draw_beside(work, config, model, 5, slice(0, 8), device)
    part = draw_beside(work, config, model, 5, slice(2, 6), device)
    other = draw_beside(work, config, model, 6, slice(0, 8), device)
    assert set(whole) == {"start", "gap", "jacobian"}
    for name, values in whole.items():
        assert torch.equal(values[2:6], part[name]) and not torch.equal(values, other[name])
    assert draw_beside(Work(1, 1), ExperimentConfig(), model, 5, slice(0, 8), device) == {}


def test_ranks_draw_large_numbers_for_their_rows_alone():
    """No tensor is made for more rows; rows, kinds and steps differ; the numbers are normal."""
    sizes, empty = [], torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *size, **on: sizes.append(size) or empty(*size, **on))
        draw = lambda kind, step, rows: draw_normal(kind, 0, step, rows, (16, 32), torch.device("cpu"))  # noqa: E731
        part = draw("jacobian", 3, slice(500, 508))
        assert sizes == [(8, 16, 32)]
    whole = draw("jacobian", 3, slice(496, 512))
    assert torch.equal(whole[4:12], part)
    for other in (draw("start-noise", 3, slice(500, 508)), draw("jacobian", 4, slice(500, 508)), part.roll(1, 0)):
        assert not torch.isclose(other, part).flatten(1).all(1).any()
    assert abs(float(whole.mean())) < 0.04 and abs(float(whole.std()) - 1) < 0.04


def test_the_log_of_adjoint_solves_resumes_bit_for_bit(experiment):
    """A checkpoint between two lines of the log: the next line counts the solves before it, too."""
    config = experiment(
        model={"implicit_depth": 2, "injection": "decay"}, sjfb={"variant": "implicit", "adjoint_iterations": 2},
        optim={"steps": 6}, run={"checkpoint_every": 3, "log_every": 2},
    )  # fmt: skip
    run = train(config)

    def lines():
        timed = ("images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib")
        read = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in timed} for line in read]

    whole = lines()
    # All fail but those of the first step, in which the network's output, and with it the gradient, is 0.
    assert [(line["step"], line["adjoint_failures"]) for line in whole] == [(2, 8), (4, 16), (6, 16)]
    train(config, resume=str(run / "checkpoints" / "0000003"))
    assert lines() == whole
