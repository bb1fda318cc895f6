"""scripts/study_training.py, made for a GPU, rehearsed at tiny size: measured, stopped, gone on with, reported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = """
model: {{name: {family}-XS/4, hidden_size: 32, num_heads: 2}}
data: {{vae: pixels, shape: [3, 16, 16], classes: 3, mirror: true}}
sjfb: {{no_grad: 2, grad: 2}}
optim: {{steps: 10, batch_size: 4}}
"""


@pytest.fixture
def study(tmp_path, image_folder):
    """Run the study on the test's images."""
    for family in ("FPDM", "DiT"):
        (tmp_path / f"{family.lower()}.yaml").write_text(CONFIG.format(family=family))
    words = ["--out", tmp_path / "study", "--models", "FPDM-XS/4", "--shape", "4,8,8", "--batch_size", 4]
    words += ["--precision", "no", "--modes", "plain,recompute", "--steps", 3, "--updates", 2, "--seconds", 1]
    words += ["--images", image_folder, "--configs", f"{tmp_path / 'fpdm.yaml'},{tmp_path / 'dit.yaml'}"]
    command = [sys.executable, str(ROOT / "scripts" / "study_training.py"), *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_study_from_beginning_to_end(study, tmp_path):
    said = study("--minutes", "0.15")  # a first slice, too short for all
    assert "the same command goes on" in said
    said = study()
    out = tmp_path / "study"
    rows = json.loads((out / "throughput.json").read_text())
    assert [(row["model"], row["mode"]) for row in rows] == [("FPDM-XS/4", "plain"), ("FPDM-XS/4", "recompute")]
    assert all(row["step"] == 6 and row["images_per_s"] > 0 and row["expected_gib"] > 0 for row in rows)
    steps = json.loads((out / "steps.json").read_text())
    for name in ("fpdm", "dit"):
        (run,) = (out / "runs").glob(f"*-{name}")
        assert (run / "checkpoints" / "latest").resolve().name == f"{steps[name]:07d}"
        assert (out / f"samples-{name}" / "grid.png").exists()
    assert (out / "curves.png").exists()
    report = (out / "report.md").read_text()
    for part in (
        "| FPDM-XS/4 | plain |",
        "| expected GiB |",
        f"| fpdm | {steps['fpdm']} of {steps['fpdm']} |",
        "torch",
    ):
        assert part in report, part
    assert re.search(r"report\.md", said)
