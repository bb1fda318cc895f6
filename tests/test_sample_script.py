"""scripts/sample.py on one, two and three processes, with every way of solving; protocols; compiled."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fpdm
from fpdm.sampling.images import load_pngs

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


def sample(*words, processes=1, threads=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(ROOT / "scripts" / "sample.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


# Way -> how many processes draw it besides one.
WAYS = {
    "ddpm": (3, ["--sampler", "ddpm", "--steps", 4]),
    "heun, extrapolated, Anderson, guided": (2, [
        "--sampler", "heun", "--steps", 3, "--extrapolation", 0.5, "--reuse-weight", 0.9, "--anderson", 2,
        "--cfg-scale", 2, "--cfg-interval", "200,800",
    ]),
    "adaptive, unipc": (3, ["--sampler", "unipc", "--budget", 30, "--allocation", "adaptive", "--tolerance", 0.2]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_files_do_not_depend_on_processes(tiny_run, tmp_path, way):
    """Batches of two on one and on several processes: no batch is smaller, so not a bit may differ."""
    several, settings = WAYS[way]
    for processes in (1, several):
        out = tmp_path / str(processes)
        said = sample("--ckpt", tiny_run, "--num-samples", 12, "--seed", 1, *settings, "--batch-size", 2,
                      "--out", out, processes=processes)  # fmt: skip
        assert "12 images, 12 of them new" in said
        assert {p.name for p in out.glob("0*.png")} == {f"{i:06d}.png" for i in range(12)}
    one, other = (load_pngs(tmp_path / str(n), range(12)).astype(int) for n in (1, several))
    assert len(np.unique(one.reshape(12, -1), axis=0)) == 12
    if "adaptive" not in way:
        assert np.array_equal(one, other)
    else:  # images that leave a batch change its size from update to update
        assert np.abs(one - other).max() <= 1
        spent = [json.loads((tmp_path / str(n) / "allocation.json").read_text())["updates"] for n in (1, several)]
        np.testing.assert_allclose(*spent)
    assert ("Anderson acceleration took back" in said) == ("Anderson" in way)


def test_protocol_and_what_the_recipe_says(tiny_run, tmp_path):
    said = sample("--ckpt", tiny_run, "--protocol", "paper", "--num-samples", 2, "--out", tmp_path / "s")
    assert "28 timesteps (999..0), 2 explicit blocks + 8 iterations each: 280 block passes" in said
    recipe = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert recipe["sampling"]["protocol"] == "paper" and recipe["sampling"]["sampler"] == "ddpm"
    assert recipe["sampling"]["cfg_scale"] == 1 and recipe["block_passes"] == 280
    assert recipe["precision"] == "no" and recipe["tf32"] is True


def test_tf32_is_as_asked_for(tiny_run, tmp_path, monkeypatch):
    asked, script = [], str(ROOT / "scripts" / "sample.py")
    monkeypatch.setattr("fpdm.devices.allow_tf32", asked.append)
    for words in ([], ["--tf32", "false"]):
        out = tmp_path / str(len(words))
        monkeypatch.setattr(sys, "argv", [script, "--ckpt", str(tiny_run), "--num-samples", "1", "--steps", "1",
                                          "--out", str(out), *words])  # fmt: skip
        runpy.run_path(script, run_name="__main__")
        assert json.loads((out / "samples.json").read_text())["tf32"] is not bool(words)
    assert asked == [True, False]


def test_compiled_draws_the_same(tiny_run, tmp_path):
    sample("--ckpt", tiny_run, "--num-samples", 4, "--steps", 3, "--compile", "--out", tmp_path)
    eager = fpdm.sample(fpdm.load_source(tiny_run, device="cpu"), 4, steps=3).permute(0, 2, 3, 1).numpy()
    assert np.abs(load_pngs(tmp_path, range(4)).astype(int) - eager).max() <= 1


def test_where_updates_went_is_counted_once_for_each_image(tiny_run, tmp_path):
    """Drawn, one drawn again, then more: the file speaks of as many images as there are."""
    words = ["--ckpt", tiny_run, "--budget", 30, "--allocation", "adaptive", "--tolerance", 0.2, "--out", tmp_path]
    sample(*words, "--num-samples", 4, "--batch-size", 3)
    first = json.loads((tmp_path / "allocation.json").read_text())
    (tmp_path / "000001.png").unlink()
    sample(*words, "--num-samples", 4)
    assert json.loads((tmp_path / "allocation.json").read_text()) == first and first["images"] == 4
    sample(*words, "--num-samples", 6)
    assert json.loads((tmp_path / "allocation.json").read_text())["images"] == 6
    sample(*words, "--num-samples", 6, "--reuse", "true")  # the default, said otherwise: the same recipe
