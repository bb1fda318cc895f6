"""Training under torchrun with two real processes (gloo) is training with one."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from fpdm.models import load_pretrained

ROOT = Path(__file__).parents[2]


def launch(config: Path, processes: int, results: Path, *more: str) -> Path:
    """Run scripts/train.py in `processes` processes; the run's folder."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        *launcher,
        str(ROOT / "scripts" / "train.py"),
        "--config",
        str(config),
        "--run.results",
        str(results),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (run,) = results.iterdir()
    return run


def environment():
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def config_file(experiment, tmp_path):
    config = experiment(optim={"steps": 6, "micro_batch_size": 2}, run={"log_every": 1, "checkpoint_every": 3})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    return path


def test_two_processes_follow_the_path_of_one(config_file, tmp_path):
    one, two = (launch(config_file, count, tmp_path / str(count)) for count in (1, 2))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "mse", "vb", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-5)
        for name in ("step", "lr", "n", "m"):
            assert a[name] == b[name]
    for name in ("model", "ema"):
        weights = [load_pretrained(run / "checkpoints" / "latest" / name).state_dict() for run in (one, two)]
        for key in weights[0]:
            torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-5, rtol=1e-4, msg=key)

    # and a run of two goes on with two, to where it was
    checkpoint = (two / "checkpoints" / "latest").resolve()
    before = load_pretrained(checkpoint / "model").state_dict()
    (two / "checkpoints" / "latest").unlink()
    (two / "checkpoints" / "latest").symlink_to("0000003")
    launch(config_file, 2, tmp_path / "2", "--resume", str(two))
    after = load_pretrained(checkpoint / "model").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_batch_that_does_not_divide(config_file, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "scripts" / "train.py"), "--config", str(config_file), "--optim.batch_size", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode != 0
    assert "error: optim.batch_size=9: not a multiple of the 2 processes" in done.stderr
