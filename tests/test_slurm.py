"""scripts/train.slurm with stand-ins for Slurm's commands: two tasks train together, and a signal stops both."""

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

from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig
from fpdm.training.checkpoint import find_checkpoint

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
# As Slurm does: every task gets its number; a signal for the job goes to the tasks.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
trap 'kill -USR1 $(jobs -p)' USR1
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
status=0
for task in $(jobs -p); do
    wait "$task"; ended=$?
    [ $ended = 138 ] && { wait "$task"; ended=$?; }  # the trap interrupted waiting
    [ $ended = 0 ] || status=$ended
done
exit $status
"""


@pytest.fixture
def slurm(tmp_path):
    """An environment in which srun and scontrol are stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "scontrol").write_text("#!/bin/bash\necho localhost\necho elsewhere\n")
    (folder / "python").symlink_to(sys.executable)
    for command in ("srun", "scontrol"):
        (folder / command).chmod(0o755)
    jobs = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2"}
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}"}
    return os.environ | jobs | paths | {"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_job_trains_stops_at_a_signal_and_goes_on(slurm, tiny_store, tmp_path):
    config = ExperimentConfig(
        model=ModelConfig("FPDM-XS/4", hidden_size=32, num_heads=2),
        data=DataConfig(str(tiny_store)),
        optim=OptimConfig(steps=100_000, batch_size=8),
        run=RunConfig(results=str(tmp_path / "runs"), log_every=1),
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    command = ["bash", str(ROOT / "scripts" / "train.slurm"), "--config", str(tmp_path / "config.yaml")]
    started = {"cwd": ROOT, "env": slurm, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    job = subprocess.Popen(command, **started)
    for _ in range(1200):
        logs = list((tmp_path / "runs").glob("*/log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) > 2:
            break
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    (srun,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(srun), signal.SIGUSR1)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said[-3000:]
    assert "stopped by SIGUSR1 after step" in said
    step = json.loads(logs[0].read_text().splitlines()[-1])["step"]
    assert find_checkpoint(logs[0].parent).name == f"{step:07d}"

    again = subprocess.run([*command, "--optim.steps", str(step + 2)], timeout=300, **started)
    assert again.returncode == 0, again.stdout[-3000:]
    assert f"resumed at step {step} of {step + 2}" in again.stdout
    assert find_checkpoint(logs[0].parent).name == f"{step + 2:07d}"
    assert len(list((tmp_path / "runs").iterdir())) == 1
