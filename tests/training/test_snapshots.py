"""Power-function averages and their snapshots, against sums worked out directly, and through whole runs."""

import runpy
import shutil
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fpdm.loading import load_checkpoint
from fpdm.models import load_pretrained
from fpdm.training import profiles
from fpdm.training.describe import file_sizes
from fpdm.training.ema import PowerAverage
from fpdm.training.loop import train
from fpdm.training.profiles import Profile, combine, exponent, relative_std, shares
from fpdm.training.snapshots import find_snapshots, load_average, save_snapshots

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_papers_two_profiles(std, gamma):
    """EDM2, Sec. 3.1, names them by both numbers."""
    assert exponent(std) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_shares_have_the_standard_deviation_that_names_them(std):
    steps, share = np.arange(20_000) + 0.5, shares(Profile(20_000, std), 20_000)
    mean = (share * steps).sum()
    assert share.sum() == pytest.approx(1)
    assert ((share * (steps - mean) ** 2).sum()) ** 0.5 == pytest.approx(std * 20_000, rel=1e-5)
    assert relative_std(exponent(std)) == pytest.approx(std)


def test_std_of_no_profile_is_refused():
    with pytest.raises(ValueError, match=r"std=0\.3: above 0, at most 0\.289"):
        exponent(0.3)


def test_recursion_is_the_sum_over_steps():
    """Of decays (1 - 1/t)^(gamma + 1), in float32, against the shares of all steps."""
    torch.manual_seed(0)
    model, seen = nn.Linear(3, 2), []
    average = PowerAverage(model, 0.1)
    for step in range(50):
        nn.init.normal_(model.weight)
        seen.append(model.weight.detach().double())
        average.update(model, step)
    expected = sum(share * weight for share, weight in zip(shares(Profile(50, 0.1), 50).tolist(), seen, strict=True))
    torch.testing.assert_close(average.model.weight.double(), expected, atol=1e-6, rtol=0)


@pytest.fixture
def walk(tmp_path):
    """24 steps of a random walk, with snapshots of 0.05 and 0.1; returns averages of other lengths, made directly."""
    (tmp_path / "config.yaml").touch()

    def make(every):
        torch.manual_seed(0)
        model = nn.Linear(30, 20)
        direct = [PowerAverage(model, std) for std in (0.03, 0.07, 0.2)]
        stored = [PowerAverage(model, std) for std in (0.05, 0.1)]
        for step in range(24):
            with torch.no_grad():
                model.weight.add_(torch.randn_like(model.weight))
            for average in (*direct, *stored):
                average.update(model, step)
            if (step + 1) % every == 0:
                save_snapshots(tmp_path, step + 1, stored)
        return direct

    return make


def test_any_length_is_exact_with_snapshots_of_every_step(walk, tmp_path):
    for average in walk(every=1):
        made = nn.Linear(30, 20)
        assert load_average(made, tmp_path, Profile(24, average.std)) < 1e-10
        torch.testing.assert_close(made.weight.detach(), average.model.weight.detach(), atol=1e-6, rtol=1e-6)


def test_a_stored_length_is_exact_with_any_snapshots(walk, tmp_path):
    walk(every=8)
    made = nn.Linear(30, 20)
    assert load_average(made, tmp_path, Profile(16, 0.1)) < 1e-10
    stored = find_snapshots(tmp_path)[Profile(16, 0.1)]
    torch.testing.assert_close(made.weight.detach(), load_file(stored)["weight"], atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"step=17: .*snapshots has no snapshots of this step; it has 8, 16, 24"):
        load_average(made, tmp_path, Profile(17, 0.1))


def test_other_lengths_come_nearer_with_more_snapshots():
    """What the error says is the distance of the shares, whatever the weights."""
    errors = []
    for every in (200, 100, 50):
        stored = [Profile(step, std) for step in range(every, 1001, every) for std in (0.05, 0.1)]
        wanted = Profile(1000, 0.07)
        coefficients, error = combine(stored, wanted)
        made = sum(c * shares(one, 1000) for c, one in zip(coefficients, stored, strict=True))
        target = shares(wanted, 1000)
        assert np.linalg.norm(made - target) / np.linalg.norm(target) == pytest.approx(error)
        errors.append(error)
    assert all(a > 2 * b for a, b in pairwise(errors)) and errors[-1] < 0.01


def test_a_long_run_needs_little_memory():
    """The shares of 400,000 steps in 40 snapshots would be 128 MB. The stored length is still found exactly."""
    stored = [Profile(step, std) for step in range(20_000, 400_001, 20_000) for std in (0.05, 0.1)]
    tracemalloc.start()
    coefficients, error = combine(stored, Profile(400_000, 0.1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6 and error < 1e-10
    np.testing.assert_allclose(coefficients, [0.0] * (len(stored) - 1) + [1.0], atol=1e-6)


def test_parts_of_the_steps_make_what_all_of_them_do(monkeypatch):
    stored, wanted = [Profile(step, std) for step in (300, 700, 1000) for std in (0.05, 0.1)], Profile(1000, 0.15)
    matrix, target = np.stack([shares(one, 1000) for one in stored], axis=1), shares(wanted, 1000)
    monkeypatch.setattr(profiles, "ROWS", 64)
    np.testing.assert_allclose(combine(stored, wanted)[0], np.linalg.lstsq(matrix, target)[0], rtol=1e-9)


POWER = {"ema_profiles": [0.05, 0.1], "ema_snapshot_every": 1}


def make(*words):
    """scripts/ema.py, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ema.py", *map(str, words)])
        runpy.run_path(str(ROOT / "scripts" / "ema.py"), run_name="__main__")


def test_averages_made_afterwards_are_those_of_a_run_that_had_them(experiment, tmp_path):
    """A run has two lengths, another one a third. The second's is made from the first's snapshots."""
    run = train(experiment(optim={"steps": 8, **POWER}, run={"keep_last": 1, "checkpoint_every": 2}))
    other = train(experiment(optim={"steps": 8, "ema_profiles": [0.2], "ema_extra": [0.3]}))
    make("--ckpt", run, "--std", 0.2, "--out", tmp_path / "made")
    model, facts, _ = load_checkpoint(tmp_path / "made")
    expected, theirs, _ = load_checkpoint(other, "ema-power-0.2")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    assert facts == theirs | {"weights": "ema"}
    assert "power-function average of relative standard deviation 0.2" in (tmp_path / "made" / "README.md").read_text()
    assert sorted({profile.step for profile in find_snapshots(run)}) == list(range(1, 9))  # whatever keep_last says

    by_hand = load_pretrained(other / "checkpoints" / "latest" / "ema-0.3")  # a decay of its own
    assert not torch.equal(by_hand.final_layer.linear.weight, expected.final_layer.linear.weight)
    with pytest.raises(ValueError, match=r"weights='ema-0\.4': .* has ema, ema-0\.3, ema-power-0\.2, model; choose"):
        load_checkpoint(other, "ema-0.4")
    with pytest.raises(ValueError, match=r"weights=ema-0\.3: .*made is an export of the ema weights only"):
        load_checkpoint(tmp_path / "made", "ema-0.3")


def test_run_without_snapshots_is_told(experiment, tmp_path, capsys):
    run = train(experiment())
    assert not (run / "snapshots").exists()
    with pytest.raises(SystemExit):
        make("--ckpt", run, "--out", tmp_path / "made")
    assert "has no snapshots; train with optim.ema_profiles and optim.ema_snapshot_every" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make("--ckpt", "assets/fpdm-digits", "--out", tmp_path / "made")
    assert "not a run, so it has no snapshots; give the folder of a training run" in capsys.readouterr().err


def test_snapshots_of_a_resumed_run_and_of_a_fork(experiment):
    """A resumed run begins without those of later steps; a fork has those before it, and changes none of them."""
    settings = {"optim": {**POWER, "ema_snapshot_every": 2}, "run": {"checkpoint_every": 4, "name": "trunk"}}
    run = train(experiment(**{**settings, "optim": {**settings["optim"], "steps": 8}}))
    before = {path.name: path.read_bytes() for path in find_snapshots(run).values()}
    assert len(before) == 8
    config = experiment(optim={**settings["optim"], "steps": 7}, run={"name": "fork"})
    fork = train(config, fork=str(run / "checkpoints" / "0000004"))
    assert {path.name: path.read_bytes() for path in find_snapshots(run).values()} == before
    found = {path.name: path.read_bytes() for path in find_snapshots(fork).values()}
    assert {int(name[:7]) for name in found} == {2, 4, 6, 7}  # and one of the last step
    assert all(found[name] == before[name] for name in found if int(name[:7]) < 7)

    (run / "snapshots" / "0000006-0.1.safetensors").write_bytes(b"of another past")
    (run / "checkpoints" / "latest").unlink()
    shutil.rmtree(run / "checkpoints" / "0000008")
    (run / "checkpoints" / "latest").symlink_to("0000004")
    train(experiment(**{**settings, "optim": {**settings["optim"], "steps": 8}}), resume=str(run))
    assert {path.name: path.read_bytes() for path in find_snapshots(run).values()} == before


def test_snapshot_that_cannot_be_written_leaves_none_behind(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*args):
        Path(args[1]).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr("fpdm.training.snapshots.save_file", fail)
    with pytest.raises(OSError, match=r"No space left on device; make room, .*0000003-0\.1\.safetensors"):
        save_snapshots(tmp_path, 3, [PowerAverage(nn.Linear(1, 1), 0.1)])
    assert not list((tmp_path / "snapshots").iterdir())


@pytest.mark.parametrize("damage", [lambda whole: b"half", lambda whole: whole.replace(b"weight", b"wejght")])
def test_damaged_snapshot_is_named(walk, tmp_path, damage):
    walk(every=8)
    path = tmp_path / "snapshots" / "0000008-0.05.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"0000008-0\.05\.safetensors is damaged .*; remove it"):
        load_average(nn.Linear(30, 20), tmp_path, Profile(24, 0.07))


SIZES = {
    "as ever": {},
    "averages": {"ema_extra": [0.9], "ema_profiles": [0.05, 0.1], "ema_snapshot_every": 1},
    "muon": {"optimizer": "muon", "ema_extra": [0.9]},
}


@pytest.mark.parametrize("way", SIZES)
def test_told_sizes_are_those_of_the_files(experiment, way):
    """Up to names and random states, a few KiB in each file."""
    if way == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    config = experiment(model={"hidden_size": 96}, optim={"steps": 1, **SIZES[way]})
    run = train(config)
    sizes = file_sizes(config.optim, load_pretrained(run / "checkpoints" / "latest" / "model"))
    checkpoint = (run / "checkpoints" / "latest").resolve()
    written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.suffix in (".safetensors", ".pt"))
    told = sizes.weights + sizes.averages + sizes.optimizer
    assert told < written < 1.02 * told + 40_000
    snapshots = sum(path.stat().st_size for path in find_snapshots(run).values())
    assert sizes.snapshots <= snapshots < 1.02 * sizes.snapshots + 1
