"""The quickstart from end to end at a tiny size: every phase, every file, and going on after a stop."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


def quickstart(out: Path, words: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
    return done.stdout


def test_iterations_that_the_looped_model_was_not_trained_with(tmp_path):
    """Refused at once, not after minutes of training."""
    command = [sys.executable, ROOT / "scripts" / "quickstart.py", "--out", tmp_path / "q", "--iterations", "[10]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 2 and "iterations=(10,): FPDM, looped has at most 2; add a smaller number" in done.stderr
    assert not (tmp_path / "q").exists()


def test_quickstart(tmp_path, tiny, digits_classifier):
    out = tmp_path / "quickstart"
    shutil.copytree(digits_classifier, out / "features")
    steps = {"fpdm": 9, "dit": 5, "looped": 7}  # test_reproduce.py has the script measure them
    (out / "steps.json").write_text(json.dumps(steps))
    said = quickstart(out, tiny["quickstart.py"])
    for phase in ("train_vae.py", "encode_latents.py", "train.py", "8 timesteps (999..0), 2 explicit blocks + 1 iter"):
        assert phase in said
    assert "| DiT | DDIM | 24 | 2 |" in said and "Held-out digits" in said and "FPDM, no reuse" in said
    report = (out / "report.md").read_text()
    assert "FD-cnn@70" in report and "1,632 training digits" in report and "| memorised |" in report
    assert "The training" in report
    strips = ("dit-24", "fpdm-24", "looped-24", "dit-36", "fpdm-36", "looped-36")
    for picture in ("overview.png", "smoothing.png", *(f"{strip}-block-passes.png" for strip in strips)):
        assert min(Image.open(out / picture).size) > 50

    (out / "report.md").unlink()
    again = quickstart(out, tiny["quickstart.py"])
    assert "train_vae.py" not in again and "train.py" not in again  # nothing is done twice
    tables = [text[text.index("| model |") :].splitlines()[:16] for text in (said, again)]
    assert tables[0] == tables[1]
