"""Runs that start from other weights (--init): what they take, tell and refuse, and how they resume."""

import json
import logging
import re
import shutil
from dataclasses import asdict
from functools import partial

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fpdm.commands import train as command
from fpdm.config import DiffusionConfig
from fpdm.data.latents import LatentStore
from fpdm.export import export_model
from fpdm.loading import load_checkpoint
from fpdm.models import build_model
from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.dry_run import describe_run
from fpdm.training.loop import train
from fpdm.training.start import Init

STILL = {"lr": 1e-12, "warmup": 0}  # weights that do not move by more than rounding


def init_of(source, weights="ema", rule=None, read=load_checkpoint):
    return Init(str(source), weights, rule, read)


def weights(checkpoint, kind="model"):
    return load_file(checkpoint / kind / "model.safetensors")


@pytest.fixture
def dit(experiment):
    """A run of a DiT of 4 blocks, whose averaged weights differ from its trained ones."""
    model = {"name": "DiT-XS/4", "depth": 4}
    return train(experiment(model=model, optim={"steps": 3, "lr": 1e-2, "warmup": 0}, run={"name": "dit"}))


def test_a_run_from_the_weights_of_another(experiment, dit):
    """Its first weights are the source's averaged ones, in the network and in its averages; all else is new."""
    model = {"name": "DiT-XS/4", "depth": 4}
    run = train(experiment(model=model, optim={"steps": 2, **STILL, "ema_extra": [0.5]}), init=init_of(dit))
    source, started = find_checkpoint(dit), find_checkpoint(run)
    assert run.name == "001-DiT-XS-4" and started.name == "0000002" and load_trainer(started)["step"] == 2
    for kind in ("model", "ema", "ema-0.5"):
        for name, value in weights(started, kind).items():
            torch.testing.assert_close(value, weights(source, "ema")[name], rtol=0, atol=1e-6)
    moved = weights(source)["final_layer.linear.weight"] - weights(source, "ema")["final_layer.linear.weight"]
    assert moved.abs().max() > 1e-4  # or this could not tell them apart
    assert "init" not in (run / "config.yaml").read_text()
    text = (run / "log.txt").read_text()
    assert f"starts from   the ema weights of {source}" in text and text.count("starts from") == 1
    assert re.search(r"blocks\.0-3 +<- blocks\.0-3\n", text) and "warning: the weights" not in text
    other = train(experiment(model=model, optim={"steps": 1, **STILL}), init=init_of(source, "model"))
    torch.testing.assert_close(weights(find_checkpoint(other)), weights(source), rtol=0, atol=1e-6)


def test_an_fpdm_from_an_exported_dit(experiment, dit, tmp_path):
    """By the exported folder; the rule is known by its name, and a fork of the run is as any other."""
    model, facts, _ = load_checkpoint(dit)
    export_model(tmp_path / "exported", model, facts | {"weights": "ema"}, None, {})
    init = init_of(tmp_path / "exported", rule="average")
    run = train(experiment(optim={"steps": 2, **STILL}), init=init)
    ours, theirs = weights(find_checkpoint(run)), model.state_dict()
    for name, value in ours.items():
        if name.startswith("implicit.blocks.0."):
            end = name.removeprefix("implicit.blocks.0.")
            value = value - (theirs[f"blocks.1.{end}"] + theirs[f"blocks.2.{end}"]) / 2
            assert value.abs().max() < 1e-6, name
    text = (run / "log.txt").read_text()
    assert "the mean of blocks.1-2" in text and "warning: explicit blocks and head were conditioned on" in text


def test_a_resumed_run_that_started_from_weights_ends_with_the_same_bits(experiment, dit, tmp_path):
    """--resume auto --init: the first job starts from the weights, the next ones resume, even without the source."""
    init = init_of(dit)
    config = partial(experiment, run={"checkpoint_every": 2, "name": "long"})
    whole = train(config(optim={"steps": 4}), "auto", init=init)
    cut = whole.with_name("002-long")
    shutil.copytree(whole, cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "0000004")
    (cut / "checkpoints" / "latest").unlink()
    (cut / "checkpoints" / "latest").symlink_to("0000002")
    shutil.rmtree(dit)
    assert train(config(optim={"steps": 4}), "auto", init=init) == cut
    for kind in ("model", "ema"):
        ours, theirs = (weights(run / "checkpoints" / "0000004", kind) for run in (cut, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (cut / "log.txt").read_text().count("starts from") == 1  # that of the first job, which was copied


def test_what_differs_besides_the_network_is_told(experiment, dit):
    checkpoint = find_checkpoint(dit)
    model, facts, _ = load_checkpoint(dit)
    store = LatentStore(experiment().data.latents).manifest
    assert facts["codec_fingerprint"] == store.fingerprint
    other = {"schedule": "cosine", "parametrisation": "eps", "zero_terminal_snr": False, "weighting": "eps",
             "draw": "logit-normal"}  # fmt: skip
    facts |= {"codec_fingerprint": "another", "diffusion": facts["diffusion"] | other}
    init = init_of(dit, read=lambda source, kind: (model, facts, checkpoint))
    said = describe_run(experiment(model={"name": "DiT-XS/4", "depth": 4}), 1, None, init)
    changed = "schedule was cosine, is linear; parametrisation was eps, is v; zero_terminal_snr was False, is True"
    assert f"warning: the weights are of another process ({changed})\n" in said
    assert f"warning: the weights were trained on the latents of another VAE ({facts['codec']})\n" in said
    kept = asdict(DiffusionConfig())
    assert kept["weighting"] != "eps" and kept["draw"] != "logit-normal"  # not told of: that is how to train


def test_ways_to_start_that_exclude_each_other(experiment, dit):
    model, source = {"name": "DiT-XS/4", "depth": 4}, str(dit)
    config = partial(experiment, model=model)
    refused = [
        ({}, {"fork": source}, "--fork .*dit with --init .*dit: a fork continues another run"),
        ({}, {"resume": "latest"}, "--resume latest with --init .*dit: .* is a new run; .* or resume auto"),
        ({}, {"resume": source}, "--resume .*dit with --init .*dit: .* is a new run"),
        ({"run": {"name": "dit"}}, {"resume": "auto"}, r"--init .*: dit is the run to start from; set run\.name"),
        ({"model": {**model, "depth": 3}}, {}, r"--init .*dit: model\.depth is 4 in the weights and 3"),
        ({}, {"init": init_of(dit, "ema-0.9")}, r"weights='ema-0\.9': .* has ema, model"),
        ({}, {"init": init_of("/absent")}, "/absent does not exist"),
        ({}, {"init": init_of(dit, rule="copy")}, "--init .*dit: init_rule=copy: only for an FPDM from a DiT"),
    ]
    for settings, options, says in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            train(config(**settings), **{"init": init_of(dit), **options})
    assert [path.name for path in dit.parent.iterdir()] == ["000-dit"]  # a refusal leaves no trace


@pytest.fixture
def run_command(monkeypatch, caplog, experiment):
    """What train.py says of a command line, with the small experiment's settings."""
    config = experiment()
    base = {"model.name": "FPDM-XS/4", "model.hidden_size": 32, "model.num_heads": 2, "optim.batch_size": 8,
            "optim.steps": 2, "data.latents": config.data.latents, "run.results": config.run.results}  # fmt: skip

    def run(*words) -> str:
        line = [str(word) for name, value in base.items() for word in (f"--{name}", value)]
        monkeypatch.setattr("sys.argv", ["train.py", *line, *map(str, words)])
        caplog.clear()
        with caplog.at_level(logging.INFO, "fpdm"):
            command.main()
        return caplog.text

    return run


def test_the_command_starts_a_run(run_command, dit):
    """A dry run tells the same of the weights as the run; two steps of it are trained."""
    words = ("--init", dit, "--init-weights", "model", "--init-rule", "copy", "--model.injection", "add")
    tables = [
        re.search(r"  starts from .*?(?=\n  \w|\n\S)", run_command(*words, *more), re.DOTALL)[0]
        for more in (["--dry-run"], [])
    ]
    assert tables[0] == tables[1] and "the model weights of" in tables[0]
    assert re.search(r"implicit\.blocks\.0 +<- blocks\.2\n", tables[0])
    run = dit.with_name("001-FPDM-XS-4")
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert "init" not in yaml.safe_load((run / "config.yaml").read_text())


def test_a_dry_run_refuses_what_training_would(run_command, dit):
    with pytest.raises(ValueError, match=r"--init .*dit: .* are 5 blocks, and the weights are of a DiT with 4"):
        run_command("--dry-run", "--init", dit, "--model.implicit_depth", 3)
    said = run_command("--dry-run", "--init", dit, "--data.latents", "/nowhere", "--data.shape", "4,16,16",
                       "--data.classes", 7)  # fmt: skip
    assert "classes by name where both sides name them" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--init-weights", "model"], "init_weights=model without init: .* add --init PATH"),
        (["--init-rule", "average"], "init_rule=average without init"),
        (["--init", "x", "--resume", "latest", "--dry-run"], "--resume latest with --init x"),
        (["--init", "x", "--init-rule", "first"], "init_rule='first': choose one of copy, average"),
    ],
)
def test_options_of_init_are_checked(run_command, words, says):
    with pytest.raises(ValueError, match=says):
        run_command(*words)


def test_all_learned_things_are_taken_or_told(experiment, dit):
    """Whatever a network learns is named in the table, or it would be taken or lost in silence."""
    names = {"depth": 4, "qk_norm": True, "positions": "learned", "early_head": 2}
    network = build_model("DiT-XS/4", hidden_size=32, num_heads=2, input_size=8, num_classes=3, **names)
    init = init_of("x", read=lambda *_: (network, load_checkpoint(dit)[1], dit))
    said = describe_run(experiment(model={"name": "DiT-XS/4", **names}), 1, None, init)
    for name in {name.split(".")[0] for name, _ in network.named_parameters()}:
        assert re.search(rf"\b{name}\b.* <- ", said), name
