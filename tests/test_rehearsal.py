"""tests/gpu can be rehearsed on a CPU, so that what it holds does not rot where there is no GPU: a few of them are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
CHEAP = "vae_encodes or statistics_are or (draw_the_cpus and ddim) or host_does_not_wait or gradients_are"


def test_gpu_tests_run_on_a_cpu_where_they_can():
    files = [f"tests/gpu/test_{name}.py" for name in ("data", "evaluation", "memory", "sampling")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rehearse", "-k", CHEAP]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 4
    assert "needs CUDA itself, which a rehearsal on the CPU does not have" in done.stdout
