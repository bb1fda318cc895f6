"""Stopped from outside: a signal loses nothing at all. What SIGKILL loses is tested by tests/soak."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.loop import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RATES = ("images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib")


def log(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in RATES} for line in lines]


@pytest.fixture
def assert_same_ending(assert_same):
    def check(whole, resumed):
        ours, theirs = find_checkpoint(resumed), find_checkpoint(whole)
        assert ours.name == theirs.name
        for name in ("model", "ema"):
            weights = [checkpoint / name / "model.safetensors" for checkpoint in (ours, theirs)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
        assert_same(load_trainer(ours), load_trainer(theirs))
        assert log(resumed) == log(whole)

    return check


def wait_for_steps(results, steps, process):
    """The run's folder, once its log has so many lines."""
    for _ in range(1200):
        for path in results.glob("*/log.jsonl"):
            if len(path.read_text().splitlines()) >= steps:
                return path.parent
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run did not begin")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("processes", "sent"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_signal_writes_a_checkpoint_and_ends_cleanly(experiment, tmp_path, processes, sent, assert_same_ending):
    config = experiment(optim={"steps": 100_000}, run={"log_every": 1, "results": str(tmp_path / "runs")})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(ROOT / "scripts" / "train.py"), "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    run = wait_for_steps(tmp_path / "runs", 3, process)
    # One of two workers alone is told: they must agree on the step at which both stop.
    target = process.pid if processes == 1 else children(process.pid)[-1]
    os.kill(target, sent)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-3000:]
    step = log(run)[-1]["step"]
    assert (sent == signal.SIGINT) == ("Ctrl-C: training stops with a checkpoint after this step" in said)
    assert f"stopped by {sent.name} after step" in said or processes > 1
    assert "after step" in said and f"checkpoint written; resume with --resume {run}" in said
    assert find_checkpoint(run).name == f"{step:07d}" and step < 100_000

    if processes == 1:  # what was stopped goes on as if it had not been
        config.optim.steps = step + 3
        train(config, resume=str(run))
        config.run.results = str(tmp_path / "whole")
        assert_same_ending(train(config), run)


def test_second_ctrl_c_ends_at_once(experiment, tmp_path):
    """Both come amid a step that does not end by itself: nothing is written, and what was written stays."""
    config = experiment(optim={"steps": 100_000}, run={"log_every": 1, "results": str(tmp_path / "runs")})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    endless = "import runpy, sys, time, fpdm.training.step as step\n" \
              "original = step.learning_rate\n" \
              "step.learning_rate = lambda optim, i: time.sleep(600) if i == 2 else original(optim, i)\n" \
              "sys.argv = sys.argv[1:]\n" \
              "runpy.run_path(sys.argv[0], run_name='__main__')\n"  # fmt: skip
    command = [sys.executable, "-c", endless, str(ROOT / "scripts" / "train.py")]
    command += ["--config", str(tmp_path / "config.yaml"), "--run.checkpoint_every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    run = wait_for_steps(tmp_path / "runs", 2, process)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "press it again to end at once" in said and "interrupted" in said
    assert find_checkpoint(run).name == "0000002"


def test_torchrun_passes_sigterm_on(experiment, tmp_path):
    """Between log lines, where the processes hear of it a step later."""
    config = experiment(optim={"steps": 100_000}, run={"log_every": 23, "results": str(tmp_path / "runs")})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "scripts" / "train.py"), "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    run = wait_for_steps(tmp_path / "runs", 1, process)
    process.terminate()
    said, _ = process.communicate(timeout=120)  # torchrun itself reports the signal and a status of its own
    assert "checkpoint written" in said
    assert log(run)[-1]["step"] <= int(find_checkpoint(run).name) < log(run)[-1]["step"] + 23
