"""A flow against numbers recorded from the published SiT: forward, loss, gradients, samples and guidance."""

import sys

import pytest
import torch

from fpdm.commands import import_checkpoint
from fpdm.cost import ForwardCost
from fpdm.loading import load_checkpoint
from fpdm.models.sit import OUTPUT, TIME, from_sit, reversed_time
from fpdm.processes import Flow
from fpdm.processes.times import Spacing
from fpdm.sampling.call import ModelCalls, Source
from fpdm.sampling.guidance import Guidance
from fpdm.sampling.plan import make_plan
from fpdm.sampling.solvers import SOLVERS
from fpdm.sampling.solving import Solving

close = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def data(recorded):
    return recorded("sit")


@pytest.fixture(scope="module")
def model(data):
    return from_sit(data.state, class_dropout=0.1, **data.config)


@pytest.fixture(scope="module")
def source(model):
    cost = ForwardCost(len(model.blocks))
    return Source(model, Flow(time_scale=1.0), cost, (4, 8, 8), num_classes=10, guidable=True)


def test_forward(model, data):
    """Its time is 1 - t, and its velocity -v."""
    torch.testing.assert_close(model(data["x"], 1 - data["t"], data["y"]).prediction, -data["out"], **close)


def test_training_step(data):
    model, flow = from_sit(data.state, class_dropout=0.0, **data.config).train(), Flow(time_scale=1.0)
    x0, noise, t = data["train_data"], data["train_noise"], 1 - data["t"]
    x_t = flow.add_noise(x0, noise, t)
    torch.testing.assert_close(x_t, data["train_x_t"], **close)
    torch.testing.assert_close(flow.target(x0, noise, t), -data["train_target"], **close)
    losses = flow.losses(model(x_t, flow.network_time(t), data["y"]).prediction, x0, noise, t)
    torch.testing.assert_close(losses.total, data["train_loss"], **close)
    losses.total.mean().backward()

    patch, channels = data.config["patch_size"], data.config["in_channels"]
    for name, parameter in model.named_parameters():
        expected = data[f"train_grad/{name}"]
        if name == TIME:  # the rotation is its own inverse
            expected = reversed_time(expected)
        if name.startswith(OUTPUT):
            expected = -expected.unflatten(0, (patch**2, -1))[:, :channels].flatten(0, 1)
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("sampler", "steps", "name"),
    [
        ("euler", 10, "ode_euler_10_steps"),
        ("ddim", 10, "ode_euler_10_steps"),
        ("euler", 2, "ode_euler_2_steps"),
        ("heun", 5, "ode_heun2_5_steps"),
    ],
)
def test_samples(run_sampler, source, data, sampler, steps, name):
    plan = make_plan(source.cost, steps=steps, times=Flow().times(), spacing=SOLVERS[sampler].spacing)
    x = run_sampler(source, plan, data["sample_noise"], data["sample_y"], sampler=sampler)
    torch.testing.assert_close(x, data[name], atol=5e-5, rtol=0)


@pytest.mark.parametrize(("sampler", "steps", "within"), [("heun", 40, 0.002), ("ab2", 80, 0.002), ("dpm++", 80, 0.01)])
def test_many_steps_reach_the_exact_end(run_sampler, source, data, sampler, steps, within):
    """That of an adaptive solver with a tolerance of 1e-9, whose values have a standard deviation of about 1."""
    plan = make_plan(source.cost, steps=steps, times=Flow().times(), spacing=SOLVERS[sampler].spacing)
    x = run_sampler(source, plan, data["sample_noise"], data["sample_y"], sampler=sampler)
    assert float((x - data["ode_exact"]).square().mean().sqrt()) < within


def test_stochastic_samples(run_sampler, source, data):
    """Ten steps with noise down to t = 0.04, and the mean of one more."""
    spacing = SOLVERS["sde"].spacing
    assert spacing == Spacing(last=0.04)
    plan = make_plan(source.cost, steps=11, times=Flow().times(), spacing=spacing)
    noises = data["sde_sigma_noises"]
    x = run_sampler(source, plan, data["sample_noise"], data["sample_y"], sampler="sde", step_noise=lambda i: noises[i])
    torch.testing.assert_close(x, data["sde_sigma"], atol=5e-5, rtol=0)


def test_guidance_on_three_channels(source, data):
    t, x = 0.7, data["sample_noise"]
    calls = ModelCalls(source, data["sample_y"], Guidance(4.0, channels=3), Solving())
    found = calls(x, t, source.process.level(t), None)
    expected = data["cfg4_t03_first3"]
    torch.testing.assert_close(found.mean, -expected, **close)


def test_a_state_dict_of_something_else_is_refused(data):
    state = {name: value for name, value in data.state.items() if name != TIME}
    with pytest.raises(ValueError, match=rf"missing names \['{TIME}'\]"):
        from_sit(state, **data.config)


def test_the_command_imports_a_published_file(data, monkeypatch, tmp_path):
    """The folder holds the process, and its network predicts what the published one does."""
    torch.save({"model": {}, "ema": data.state}, tmp_path / "sit.pt")
    words = {"source": tmp_path / "sit.pt", "out": tmp_path / "sit", "process": "flow", "vae": "pixels",
             "num-heads": data.config["num_heads"]}  # fmt: skip
    given = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", *given])
    import_checkpoint.main()
    model, facts, _ = load_checkpoint(tmp_path / "sit")
    assert facts["diffusion"]["process"] == "flow" and facts["diffusion"]["time_scale"] == 1
    card = (tmp_path / "sit" / "README.md").read_text()
    assert "| process | flow |" in card and "| predicts | velocity |" in card
    assert not facts["diffusion"]["learn_sigma"] and len(facts["class_names"]) == data.config["num_classes"]
    with torch.no_grad():
        torch.testing.assert_close(model(data["x"], 1 - data["t"], data["y"]).prediction, -data["out"], **close)
    for option in ("parametrisation", "zero_terminal_snr"):
        with pytest.raises(ValueError, match=rf"{option}=v with process=flow, which does not use it; leave it out"):
            import_checkpoint.Settings(source="sit.pt", out="sit", process="flow", **{option: "v"})


def test_an_fpdm_was_not_published_as_a_flow(recorded, monkeypatch, tmp_path):
    torch.save(recorded("fpdm_timed").state, tmp_path / "fpdm.pt")
    words = ["--source", tmp_path / "fpdm.pt", "--out", tmp_path / "fpdm", "--process", "flow", "--num-heads", 2]
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", *map(str, words)])
    with pytest.raises(ValueError, match=r"fpdm\.pt: process=flow: .* FPDM, which was published for discrete"):
        import_checkpoint.main()


def test_a_state_dict_that_is_none_of_a_model_is_named(recorded, monkeypatch, tmp_path):
    """One flipped bit in a name."""
    state = recorded("fpdm_timed").state
    torch.save({name.replace("x_embedder.proj.w", "x_embedder.proj.v"): value for name, value in state.items()},
               tmp_path / "fpdm.pt")  # fmt: skip
    words = ["--source", tmp_path / "fpdm.pt", "--out", tmp_path / "fpdm", "--num-heads", 2]
    monkeypatch.setattr(sys, "argv", ["import_checkpoint.py", *map(str, words)])
    with pytest.raises(ValueError, match=r"source .*fpdm\.pt: not the state dict of a DiT or an FPDM: it has no"):
        import_checkpoint.main()
