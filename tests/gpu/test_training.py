"""Training on a VAE's latents as users run it: in each precision, eager, compiled, recomputing, in micro-batches,
resumed. Every mode goes on from one checkpoint, along the path of float32."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig, SJFBConfig
from fpdm.data.latents import LatentStore
from fpdm.models import load_pretrained
from fpdm.training.batches import read_batch
from fpdm.training.checkpoint import load_trainer
from fpdm.training.ema import EMA
from fpdm.training.loop import train

pytestmark = pytest.mark.gpu
BEGUN, END = 20, 24  # steps of the checkpoint that all modes go on from, and of theirs
MODES = {
    "eager": {},
    "micro-batches": {"micro_batch_size": 4},
    "recomputing": {"gradient_checkpointing": True},
    "compiled": {"compile": True, "micro_batch_size": 4},
    "compiled, recomputing": {"compile": True, "gradient_checkpointing": True},
}
TOLERANCE = {"no": 1e-3, "bf16": 0.05, "fp16": 0.02}  # relative


def experiment(store, results, precision="no", steps=END, micro_batch_size=None, **run) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(name="FPDM-XS/2", hidden_size=64, num_heads=4),
        sjfb=SJFBConfig(no_grad=3, grad=3),
        data=DataConfig(latents=str(store)),
        optim=OptimConfig(steps=steps, batch_size=8, lr=3e-3, warmup=0, micro_batch_size=micro_batch_size),
        run=RunConfig(results=str(results), mixed_precision=precision, tf32=False, log_every=1,
                      **{"checkpoint_every": BEGUN, **run}),
    )  # fmt: skip


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def begun(tiny_store, tmp_path_factory) -> Path:
    """A run in float32, eager, with checkpoints at BEGUN and END."""
    return train(experiment(tiny_store, tmp_path_factory.mktemp("begun")))


@pytest.fixture
def cut(begun, tmp_path) -> Path:
    """The same run as if it had been stopped at BEGUN."""
    run = tmp_path / "runs" / begun.name
    shutil.copytree(begun, run, symlinks=True)
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "latest").symlink_to(f"{BEGUN:07d}")
    return run


def assert_follows(run: Path, whole: Path, tolerance: float):
    """The steps after BEGUN: all of them were made, and their numbers are those of the run that was not stopped."""
    ours, theirs = log(run)[BEGUN:], log(whole)[BEGUN:]
    assert [line["step"] for line in ours] == list(range(BEGUN + 1, END + 1)) and ours[-1]["skipped"] == 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a["n"], a["m"]) == (b["n"], b["m"])
        for name in ("loss", "mse", "residual"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), name
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=4 * tolerance)


CASES = [(precision, mode) for precision in ("no", "bf16") for mode in ("eager", "micro-batches", "recomputing")]
CASES += [("bf16", "compiled"), ("bf16", "compiled, recomputing")]  # few, for each compiles for half a minute


@pytest.mark.parametrize(("precision", "mode"), CASES, indirect=["precision"])
def test_every_mode_follows_the_path_of_float32(begun, cut, tiny_store, precision, mode):
    torch.compiler.reset()
    run = train(experiment(tiny_store, cut.parent, precision, **MODES[mode]), resume=str(cut))
    assert run == cut
    assert_follows(run, begun, TOLERANCE[precision])
    if precision == "no":
        weights = [load_pretrained(r / "checkpoints" / f"{END:07d}" / "ema").state_dict() for r in (run, begun)]
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize("mode", ["eager", "recomputing", "compiled"])
@pytest.mark.parametrize("precision", ["fp16"], indirect=True)
def test_fp16_follows_it_once_the_scale_fits(begun, cut, tiny_store, precision, mode):
    """Steps whose gradients overflow are skipped and lower the scale; it is in the checkpoint, so a resumed run has
    it."""
    torch.compiler.reset()
    config = experiment(tiny_store, cut.parent, precision, steps=40, **MODES[mode])
    run = train(config, resume=str(cut))
    lines = log(run)[BEGUN:]
    made = [line for line in lines if "loss" in line]
    assert len(made) >= 10 and lines[-1]["skipped"] == len(lines) - len(made)
    assert lines[0]["loss_scale"] > 1 and all(np.isfinite(line["grad_norm"]) for line in made)
    first = made[0]  # the weights are still those of BEGUN, a few skipped steps later or none
    if first["step"] == BEGUN + 1:
        assert first["loss"] == pytest.approx(log(begun)[BEGUN]["loss"], rel=TOLERANCE["fp16"])
    assert np.mean([line["loss"] for line in made[-5:]]) < 1.5 * np.mean([line["loss"] for line in log(begun)[-5:]])
    scale = lines[-1]["loss_scale"]
    assert load_trainer(run / "checkpoints" / "latest")["scaler"]["scale"] == scale
    config.optim.steps = 41
    assert log(train(config, resume=str(run)))[-1]["loss_scale"] in (scale, scale / 2)


def test_a_dit_trains_too(tiny_store, tmp_path, half):
    config = experiment(tiny_store, tmp_path, half, steps=6, gradient_checkpointing=True)
    config.model = ModelConfig(name="DiT-XS/4", depth=2, hidden_size=64, num_heads=4)
    run = train(config)
    assert len(log(run)) == 6 and any("loss" in line for line in log(run))
    config.optim.steps = 8
    assert train(config, resume="latest") == run and log(run)[-1]["step"] == 8


def test_batches_are_contiguous_and_pinned(tiny_store, tmp_path, cuda):
    """So that the host does not wait for their copies; on the device they are the store's numbers."""
    store, rows = LatentStore(tiny_store), slice(0, 8)
    batch = read_batch(experiment(tiny_store, tmp_path), store, 3, rows, cuda)
    assert batch.records.shape == (8, 2, 4, 8, 8) and batch.records.dtype == torch.float16
    assert all(part.is_contiguous() and part.is_pinned() for part in batch[:2]) and batch.attributes is None
    expected = read_batch(experiment(tiny_store, tmp_path), store, 3, rows, torch.device("cpu"))
    there = batch.to(cuda)
    for found, part in zip(there[:2], expected[:2], strict=True):
        assert found.is_cuda and torch.equal(found.cpu(), part)
    for found, part in zip(there.moments(), expected.moments(), strict=True):
        torch.testing.assert_close(found.cpu(), part, atol=0, rtol=0)


WAITLESS = {"eager": {}, "micro-batches, recomputing": {"micro_batch_size": 4, "gradient_checkpointing": True}}


@pytest.mark.parametrize("mode", WAITLESS)
def test_host_does_not_wait_while_training(tiny_store, tmp_path, monkeypatch, no_waiting, precision, mode):
    """From the third step to the seventh, of which none is logged."""
    update, calls = EMA.update, []

    def counted(self, *args):
        update(self, *args)
        calls.append(1)
        no_waiting(2 <= len(calls) < 7)

    monkeypatch.setattr(EMA, "update", counted)
    config = experiment(tiny_store, tmp_path, precision, steps=8, **WAITLESS[mode])
    config.run.log_every = 8
    train(config)
    assert len(calls) == 8
