import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from fpdm import devices

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


def test_bf16_is_refused_where_the_gpu_has_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    with pytest.raises(ValueError, match=r"run\.mixed_precision=bf16: Tesla V100-SXM2-32GB has no bfloat16; use fp16"):
        devices.check_precision("run.mixed_precision", "bf16", torch.device("cuda"))
    devices.check_precision("run.mixed_precision", "fp16", torch.device("cuda"))


def test_patience_reaches_the_process_group(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "PartialState", lambda **settings: asked.append(settings))
    monkeypatch.setattr(devices, "on_cpu", lambda: True)
    devices.process_state()
    devices.process_state(timedelta(hours=6))
    assert asked == [{"cpu": True}, {"cpu": True, "timeout": timedelta(hours=6)}]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_refused_on_mps(precision):
    with pytest.raises(ValueError, match=rf"precision={precision}: on Apple's GPUs .*ACCELERATE_USE_CPU=true"):
        devices.check_precision("precision", precision, torch.device("mps"))
    devices.check_precision("precision", "no", torch.device("mps"))


def test_the_cpu_can_be_asked_for(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert not devices.on_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.on_cpu()


def test_float64_where_there_is_such_a_thing():
    class OnMPS(torch.Tensor):
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(3)

    assert devices.to_float64(torch.ones(2)).dtype == torch.float64
    assert devices.to_float64(torch.zeros(2).as_subclass(OnMPS)).tolist() == [1, 1, 1]


LATE = """
import sys, time
from pathlib import Path
import torch
from fpdm import cli
from fpdm.devices import process_state

done = Path(sys.argv[1])

def main():
    if process_state().is_main_process:
        time.sleep(3)
        done.touch()

cli.run(main)
assert not torch.distributed.is_initialized() and done.exists()
print("left together")
"""


def test_processes_leave_their_group_together(tmp_path):
    """The main process has three seconds of work left, for which the other waits."""
    (tmp_path / "late.py").write_text(LATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "late.py"), str(tmp_path / "done")],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("left together") == 2


ELSEWHERE = """
import importlib, mmap, os, pkgutil, signal, sys
import psutil  # which does without, there
sys.modules["resource"] = None  # not on Windows, nor are these
for module, names in ((signal, ["SIGUSR1"]), (mmap, ["MADV_RANDOM", "MADV_WILLNEED"]), (os, ["pwrite", "pread"])):
    for name in names:
        delattr(module, name)
import fpdm
for found in pkgutil.walk_packages(fpdm.__path__, "fpdm."):
    if not found.name.startswith("fpdm.soak"):  # the campaign reads /proc
        importlib.import_module(found.name)
import torch
from fpdm.devices import peak_memory
from fpdm.training.signals import SIGNALS
assert peak_memory(torch.device("cpu")) > 2**20 and len(SIGNALS) == 2
"""


def test_package_imports_where_unix_has_more():
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer [127.0.0.1]:539", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("wait timeout after 300000ms, keys: /default_pg/0//store_based_barrier", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", False),
    ],
)
def test_a_lost_process_is_told_from_other_errors(monkeypatch, said, lost):
    assert not devices.is_lost_process(RuntimeError(said))  # alone, no process can be lost
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert devices.is_lost_process(RuntimeError(said)) == lost


def test_a_process_that_is_lost_while_they_come_together():
    """torch has a class for this error, and no group yet."""
    said = "The client socket has timed out after 15000ms while trying to connect to (127.0.0.1, 51113)."
    assert devices.is_lost_process(torch.distributed.DistNetworkError(said))
