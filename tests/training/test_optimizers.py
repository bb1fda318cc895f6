"""Rates, decays and methods of groups of parameters, against steps whose result is known."""

import json
import math
import shutil
from copy import deepcopy

import pytest
import torch
import yaml

from fpdm.config import OptimConfig
from fpdm.models import build_model
from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.describe import optimizer_bytes
from fpdm.training.loop import train
from fpdm.training.optimizers import check_optimizer, make_optimizer, parameter_groups, set_rates

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")


def build(width=32, **settings):
    settings = {"implicit_depth": 2, "loop_embedding": 2, "early_head": 1} | settings
    return build_model(
        "FPDM-XS/4", input_size=8, num_classes=3, hidden_size=width, num_heads=2, pre_depth=1, post_depth=1, **settings
    )


def optimizer_of(optim, network):
    groups = parameter_groups(optim, network)
    return make_optimizer(optim, groups), groups


def changes(optim, network, gradient):
    """By name, by how much one step changes a weight whose gradient is `gradient` everywhere."""
    optimizer, _ = optimizer_of(optim, network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return {name: (p.detach() - before[name], before[name]) for name, p in network.named_parameters()}


def test_default_is_one_group_of_adamw_as_ever():
    """A checkpoint's optimizer state is by position, with these options."""
    network, optim = build(), OptimConfig(lr=3e-4, weight_decay=0.1)
    ours, groups = optimizer_of(optim, network)
    theirs = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    assert list(ours.state_dict()["param_groups"][0].items()) == list(theirs.state_dict()["param_groups"][0].items())
    assert [id(p) for p in groups[0].parameters] == [id(p) for p in network.parameters()] and len(groups) == 1


def test_betas_and_eps_are_adams():
    """Of a first gradient g, Adam's step is lr g / (|g| + eps), and its moments are (1 - beta) g and (1 - beta) g^2."""
    network, optim = build(), OptimConfig(lr=0.1, betas=[0.8, 0.95], eps=1.0)
    optimizer, _ = optimizer_of(optim, network)
    weight = network.final_layer.linear.weight
    weight.grad = torch.full_like(weight, 2.0)
    before = weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(weight.detach() - before, torch.full_like(weight, -0.1 * 2 / 3))
    state = optimizer.state[weight]
    torch.testing.assert_close(state["exp_avg"], torch.full_like(weight, 0.2 * 2))
    torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(weight, 0.05 * 4))


@pytest.mark.parametrize("injection", ["mlp", "norm", "decay", "lanes"])
def test_only_matrices_decay(injection):
    """Without a gradient, a step is the decay alone: a factor 1 - lr decay. Matrices are told by their names here."""
    network = build(injection=injection)
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
    optim = OptimConfig(lr=0.1, weight_decay=0.5, decay="matrices")
    for name, (change, _) in changes(optim, network, 0.0).items():
        decays = name.endswith(".weight") and "embedding_table" not in name
        torch.testing.assert_close(change, torch.full_like(change, -0.05 if decays else 0.0), msg=name)
    everything = changes(OptimConfig(lr=0.1, weight_decay=0.5), build(injection=injection), 0.0)
    for name, (change, before) in everything.items():
        torch.testing.assert_close(change, -0.05 * before, msg=name)


@pytest.mark.parametrize("width", [32, 64])
def test_mup_moves_what_a_matrix_makes_as_much_at_any_width(width):
    """Adam's first step changes each weight by its rate. The sum over a row, which is the change for an input of ones,
    must not depend on the width: 0.1 * 16 for D inputs. Inputs of fixed size, biases and vectors keep their rate."""
    plain, scaled = (changes(OptimConfig(lr=0.1, mup_base_width=base), build(width), 1.0) for base in (width, 16))
    fixed = ("x_embedder.", "y_embedder.", "t_embedder.mlp.0.")
    grown = 0
    for name, (change, _) in scaled.items():
        if name.endswith(".weight") and not name.startswith(fixed):
            per_width = change.shape[1] // width
            torch.testing.assert_close(change.sum(1), torch.full((len(change),), -0.1 * 16 * per_width), msg=name)
            grown += 1
        else:
            torch.testing.assert_close(change, torch.full_like(change, -0.1), msg=name)
        torch.testing.assert_close(plain[name][0], torch.full_like(change, -0.1), msg=name)  # width = base: no change
    assert grown == 4 * 5 + 4 + 2 * 2 + 1  # blocks, injection, heads, and the second map of the timestep


@needs_muon
def test_muon_takes_the_blocks_matrices_and_makes_them_orthogonal_steps():
    network, optim = build(), OptimConfig(optimizer="muon", lr=0.1, muon_lr=0.01, weight_decay=0.5, decay="matrices")
    optimizer, groups = optimizer_of(optim, network)
    names = {id(p): name for name, p in network.named_parameters()}
    taken = {names[id(p)] for group in groups if group.muon for p in group.parameters}
    maps = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = ("pre_blocks.0", "implicit.blocks.0", "implicit.blocks.1", "post_blocks.0")
    nearest = {}
    injection = {f"implicit.injection.{name}.weight" for name in ("project", "mix_h", "mix_u", "mix_out")}
    assert taken == {f"{block}.{name}.weight" for block in blocks for name in maps} | injection

    torch.manual_seed(0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
        if names[id(parameter)] in taken:  # with singular values of 1 to 4
            u, sizes, v = torch.linalg.svd(parameter.grad, full_matrices=False)
            parameter.grad = u * torch.linspace(4, 1, len(sizes)) @ v
            nearest[names[id(parameter)]] = u @ v
    optimizer.step()
    for name, parameter in network.named_parameters():
        if name in taken:
            step = before[name] * (1 - 0.01 * 0.5) - parameter.detach()
            rows, columns = step.shape
            step = step / (0.01 * max(1, rows / columns) ** 0.5)
            assert torch.linalg.matrix_norm(step - nearest[name], 2) < 0.4, name  # Newton-Schulz comes so near
        else:
            decay = 0.5 if name.endswith(".weight") and "embedding_table" not in name else 0.0
            expected = before[name] * (1 - 0.1 * decay) - 0.1 * parameter.grad.sign()
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=1e-4, msg=name)


@needs_muon
def test_muon_with_adamw_is_the_two_of_torch():
    """Bit for bit, also after the state has gone through a checkpoint."""
    torch.manual_seed(0)
    ours, theirs = build(), build()
    theirs.load_state_dict(ours.state_dict())
    optim = OptimConfig(optimizer="muon", lr=0.1, muon_lr=0.01, weight_decay=0.5)
    optimizer, groups = optimizer_of(optim, ours)
    matrices, others = ([p for g in parameter_groups(optim, theirs) if g.muon == muon for p in g.parameters]
                        for muon in (True, False))  # fmt: skip
    pair = [torch.optim.Muon(matrices, lr=0.01, weight_decay=0.5, momentum=0.95),
            torch.optim.AdamW(others, lr=0.1, weight_decay=0.5, fused=True)]  # fmt: skip
    for step in range(4):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        set_rates(optimizer, groups, 0.1 / (1 + step))
        for one, rate in zip(pair, (0.01, 0.1), strict=True):
            one.param_groups[0]["lr"] = rate / (1 + step)
            one.step()
        optimizer.step()
        if step == 1:
            state = optimizer.state_dict()
            optimizer, groups = optimizer_of(optim, ours)
            optimizer.load_state_dict(state)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6, msg=name)


@needs_muon
def test_loss_scaler_unscales_once_and_skips_both():
    """As with fp16 on a GPU; what takes its step once with scaled gradients is as if there were no scale."""
    optim, models = OptimConfig(optimizer="muon", lr=0.1), []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        network = build()
        optimizer, _ = optimizer_of(optim, network)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for bad in (False, True, False):
            torch.manual_seed(1)
            for parameter in network.parameters():
                parameter.grad = scaler.scale(torch.randn_like(parameter))
            if bad:
                network.final_layer.linear.weight.grad[0, 0] = math.inf
                before = [p.detach().clone() for p in network.parameters()]
            if not bad or scale:
                scaler.step(optimizer)
                scaler.update()
            if bad:
                assert all(map(torch.equal, before, network.parameters()))
        models.append(network)
        assert {float(s["step"]) for s in optimizer.state.values() if "step" in s} == {2}
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"decay": "matrices"}, pytest.param({"optimizer": "muon"}, marks=needs_muon)])
def test_counted_state_is_what_the_optimizer_holds(settings):
    network, optim = build(), OptimConfig(**settings)
    optimizer, _ = optimizer_of(optim, network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [v for state in optimizer.state.values() for name, v in state.items() if name != "step"]
    assert optimizer_bytes(optim, network) == sum(value.nbytes for value in held)


def test_muon_of_an_older_torch_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"optim\.optimizer=muon: torch .* does not have it; install torch 2\.9"):
        check_optimizer(OptimConfig(optimizer="muon"))


@needs_muon
def test_muon_of_a_network_without_blocks_is_refused():
    network = build_model("DiT-XS/4", input_size=8, num_classes=3, hidden_size=32, num_heads=2, depth=0)
    assert parameter_groups(OptimConfig(), network)
    with pytest.raises(ValueError, match=r"optim\.optimizer=muon: the network has no blocks, .* model\.depth to at"):
        parameter_groups(OptimConfig(optimizer="muon"), network)


WAYS = {
    "adamw": {"betas": [0.8, 0.99], "eps": 1e-6, "decay": "matrices", "weight_decay": 0.1, "mup_base_width": 16},
    "muon": {"optimizer": "muon", "decay": "matrices", "weight_decay": 0.1, "micro_batch_size": 4},
    "averages": {"ema_extra": [0.5, 0.9], "ema_profiles": [0.05, 0.1], "ema_snapshot_every": 2},
}


def written(run):
    """Every weight that a run has written, byte for byte."""
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*.safetensors")}


def cut_back(run, step):
    """The run as a kill would leave it, had it come right before the checkpoint after `step`."""
    link = run / "checkpoints" / "latest"
    shutil.rmtree(link.resolve())
    link.unlink()
    link.symlink_to(f"{step:07d}")


@pytest.mark.parametrize("way", [name if name != "muon" else pytest.param(name, marks=needs_muon) for name in WAYS])
def test_every_option_resumes_bit_for_bit(experiment, way, assert_same):
    config = experiment(optim={**WAYS[way], "steps": 6, "lr_schedule": "cosine"}, run={"checkpoint_every": 3})
    run = train(config)
    whole, state = written(run), load_trainer(find_checkpoint(run))
    assert len(whole) == (2 * 6 + 3 * 2 if way == "averages" else 2 * 2)
    state = {name: deepcopy(value) for name, value in state.items()}  # its file goes away
    cut_back(run, 3)
    assert train(config, resume=str(run)) == run
    assert written(run) == whole
    assert_same(load_trainer(find_checkpoint(run)), state)


@needs_muon
def test_muon_skips_what_is_not_finite(experiment, poison_losses):
    poison_losses(lambda call: call == 2)
    run = train(experiment(optim={"steps": 4, "optimizer": "muon"}))
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 1
    state = load_trainer(find_checkpoint(run))["optimizer"]["state"].values()
    assert {float(one["step"]) for one in state if "step" in one} == {3}
    assert all(torch.isfinite(value).all() for one in state for value in one.values())


def test_what_may_change_when_a_run_resumes(experiment):
    run = train(experiment())
    refused = {
        "optimizer": "muon",
        "decay": "matrices",
        "mup_base_width": 16,
        "ema_extra": [0.9],
        "ema_profiles": [0.1],
    }
    if not hasattr(torch.optim, "Muon"):
        del refused["optimizer"]  # refused for another reason
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name in refused:  # as a run has it that is older than these settings
        del config["optim"][name]
    for written in (None, config):
        if written is not None:
            (run / "config.yaml").write_text(yaml.safe_dump(written))
        for name, value in refused.items():
            with pytest.raises(ValueError, match=rf"another experiment \(optim\.{name} was"):
                train(experiment(optim={"steps": 5, name: value}), resume=str(run))
    train(experiment(optim={"steps": 5, "betas": [0.5, 0.9], "eps": 1e-6}), resume=str(run))
    (group,) = load_trainer(find_checkpoint(run))["optimizer"]["param_groups"]
    assert (group["betas"], group["eps"]) == ((0.5, 0.9), 1e-6)
