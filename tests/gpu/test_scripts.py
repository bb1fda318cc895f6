"""Every script once at tiny size: in this process, which has everything imported, and the chain's heart in one of its
own."""

import gc
import io
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from fpdm.loading import load_source
from fpdm.reproduction import digits
from fpdm.sampling.generate import sample
from fpdm.sampling.images import load_pngs

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
SMALL = ["--model.hidden_size", 32, "--model.num_heads", 2, "--optim.batch_size", 8, "--run.log_every", 2]


def run(script: str, *words, deadline=None) -> str:
    """What a script says, run as a user would; `deadline` is taken for those that run other scripts, and ignored."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("fpdm").addHandler(handler)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            patch.setattr(sys, "argv", [script, *map(str, words)])
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    except SystemExit as exit:
        assert not exit.code, f"{script} {words}: exit status {exit.code}; run it with FPDM_DEBUG=1"
    finally:
        logging.getLogger("fpdm").removeHandler(handler)
        AcceleratorState._reset_state(reset_partial_state=True)
    return said.getvalue()


def run_on_device(script: str, *words) -> str:
    """The same; where there is a GPU, the script must have used it."""
    if not torch.cuda.is_available():
        return run(script, *words)
    gc.collect()  # or what earlier tests left would be freed within the script, and hide what it needs
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    said = run(script, *words)
    assert torch.cuda.max_memory_allocated() > before, f"{script} did not use the GPU"
    return said


@pytest.fixture
def scripts_run_here(monkeypatch, tmp_path):
    """Scripts that run others run them in this process."""
    monkeypatch.chdir(ROOT)
    for module in ("fpdm.chain", "fpdm.benchmarks.steps", "fpdm.reproduction.digits"):
        monkeypatch.setattr(f"{module}.run_script", run)

    def run_all(tasks, at_once, deadline, beside=()):
        for task in tasks:
            run(task.script, *task.arguments)
        return []

    for module in ("fpdm.chain.equal_time", "fpdm.reproduction.trainings"):
        monkeypatch.setattr(f"{module}.run_scripts", run_all)


@pytest.fixture(scope="module")
def chain(tmp_path_factory, image_folder):
    """A VAE, its latents and a short run, made by the scripts."""
    root = tmp_path_factory.mktemp("chain")
    images = ["--images", image_folder, "--resolution", 16]
    run_on_device("train_vae.py", *images, "--widths", "[8,8]", "--steps", 20, "--batch-size", 8, "--out", root / "vae")
    run_on_device("encode_latents.py", *images, "--vae", root / "vae", "--out", root / "latents")
    said = run_on_device(
        "train.py", "--model.name", "FPDM-XS/2", *SMALL, "--data.latents", root / "latents",
        "--run.results", root / "runs", "--optim.steps", 4, "--run.preview_every", 4,
    )  # fmt: skip
    assert "step       4" in said
    return root


@pytest.fixture
def fpdm_run(chain) -> Path:
    return chain / "runs" / "000-FPDM-XS-2"


def test_the_chain_leaves_what_it_says(chain, fpdm_run):
    facts = json.loads((chain / "vae" / "reconstruction.json").read_text())
    assert 0 < facts["mse"] < 0.5 and (chain / "latents" / "manifest.json").exists()
    assert Image.open(fpdm_run / "samples" / "0000004.png").size == (4 * 18 + 2, 4 * 18 + 2)
    assert all(np.isfinite(json.loads(line)["loss"]) for line in (fpdm_run / "log.jsonl").read_text().splitlines())
    assert ("samples at a time" in (fpdm_run / "log.txt").read_text()) == torch.cuda.is_available()


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
def test_encode_latents_in_half_precision(chain, image_folder, tmp_path, precision):
    said = run_on_device("encode_latents.py", "--images", image_folder, "--resolution", 16, "--vae", chain / "vae",
                         "--precision", precision, "--out", tmp_path / "latents")  # fmt: skip
    assert "24 latents (4, 8, 8), 3 class(es), 2 flip(s)" in said


def test_train_resumes(chain, tmp_path, half):
    words = ["train.py", "--model.name", "FPDM-XS/2", *SMALL, "--data.latents", chain / "latents", "--run.results",
             tmp_path, "--run.mixed_precision", half, "--optim.micro_batch_size", 4]  # fmt: skip
    run_on_device(*words, "--optim.steps", 4)
    said = run_on_device(*words, "--optim.steps", 6, "--resume", "latest")
    assert "resumed at step 4 of 6" in said and "step       6" in said


def test_sample_draws_the_cpus_images(fpdm_run, tmp_path):
    words = ["--budget", 24, "--iterations", 2, "--sampler", "ddpm", "--tf32", "false", "--trace", 2]
    run_on_device("sample.py", "--ckpt", fpdm_run, *words, "--num-samples", 5, "--batch-size", 3, "--out", tmp_path)
    expected = sample(load_source(fpdm_run, device="cpu"), 5, budget=24, iterations=2, sampler="ddpm")
    difference = load_pngs(tmp_path, range(5)).astype(int) - expected.permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).max() <= 2 and (tmp_path / "trace" / "filmstrip.png").exists()


def test_sample_compiled_in_half_precision(fpdm_run, tmp_path, half):
    torch.compiler.reset()
    words = ["--steps", 3, "--num-samples", 4, "--compile", "--precision", half, "--out", tmp_path]
    assert "4 images, 4 of them new" in run_on_device("sample.py", "--ckpt", fpdm_run, *words)
    expected = sample(load_source(fpdm_run, device="cpu"), 4, steps=3).permute(0, 2, 3, 1).numpy()
    assert np.abs(load_pngs(tmp_path, range(4)).astype(int) - expected).mean() < 3


def test_sample_adaptively(fpdm_run, tmp_path):
    words = ["--budget", 30, "--allocation", "adaptive", "--tolerance", 0.2, "--num-samples", 4]
    run_on_device("sample.py", "--ckpt", fpdm_run, *words, "--batch-size", 3, "--out", tmp_path)
    facts = json.loads((tmp_path / "allocation.json").read_text())
    assert facts["images"] == 4 and 5 <= sum(facts["updates"]) <= 20


def test_evaluate(fpdm_run, tmp_path, image_folder):
    out, common = tmp_path / "s", ["--reference", image_folder, "--features", "cnn", "--cache", tmp_path / "cache"]
    run("sample.py", "--ckpt", fpdm_run, "--steps", 2, "--num-samples", 6, "--out", out)
    assert "FD-cnn@6" in run_on_device("evaluate.py", "--samples", out, *common, "--bootstrap", 3)
    score = json.loads((out / "score-cnn.json").read_text())
    assert score["images"] == 6 and score["reference_images"] == 24 and 0 < score["FD-cnn@6"] < 1e4


def test_exported_models_are_drawn_from(fpdm_run, tmp_path):
    run("export.py", "--ckpt", fpdm_run, "--out", tmp_path / "pipe", "--pipeline")
    run_on_device("sample.py", "--ckpt", tmp_path / "pipe", "--steps", 2, "--num-samples", 2, "--out", tmp_path / "a")
    run("sample.py", "--ckpt", fpdm_run, "--steps", 2, "--num-samples", 2, "--out", tmp_path / "b")
    ours, theirs = (load_pngs(tmp_path / name, range(2)).astype(int) for name in "ab")
    assert np.abs(ours - theirs).max() <= 2


def test_imported_checkpoints_are_drawn_from(recorded, chain, tmp_path):
    torch.save({"ema": recorded("dit").state}, tmp_path / "dit.pt")
    run("import_checkpoint.py", "--source", tmp_path / "dit.pt", "--vae", chain / "vae", "--out", tmp_path / "dit",
        "--num-heads", recorded("dit").config["num_heads"])  # fmt: skip
    words = ["--steps", 3, "--sampler", "dpm++", "--cfg-scale", 2, "--num-samples", 2, "--out", tmp_path / "s"]
    assert "2 images" in run_on_device("sample.py", "--ckpt", tmp_path / "dit", *words)


def test_imported_latents_are_trained_on(chain, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("features", "labels"):
        (tmp_path / f"set_{kind}").mkdir()
    for i in range(12):
        np.save(tmp_path / "set_features" / f"{i}.npy", rng.standard_normal((1, 4, 8, 8), np.float32))
        np.save(tmp_path / "set_labels" / f"{i}.npy", np.array([i % 3]))
    run("import_latents.py", "--source", tmp_path, "--vae", chain / "vae", "--out", tmp_path / "store")
    words = ["--model.name", "DiT-XS/4", "--model.depth", 1, "--data.mirror", "false", "--optim.steps", 2]
    assert "step       2" in run_on_device("train.py", *words, *SMALL, "--data.latents", tmp_path / "store",
                                           "--run.results", tmp_path / "runs")  # fmt: skip


def test_plot_run_and_solver_errors(fpdm_run, tmp_path):
    run("plot_run.py", "--runs", fpdm_run, "--out", tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 100
    assert "| 5 |" in run("solver_errors.py", "--calls", 5)


def test_study_sampling(fpdm_run, tmp_path, image_folder):
    words = ["--ckpt", fpdm_run, "--reference", image_folder, "--images", 65, "--batch-size", 65, "--budget", 16]
    parts = ["--parts", "solves,allocation", "--iterations", 3]
    run_on_device("study_sampling.py", *words, *parts, "--out", tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| reuse, Anderson(3) |" in report and "| adaptive, tolerance 0.2 |" in report and "nan" not in report


def test_study_precision(tmp_path, monkeypatch, half):
    monkeypatch.chdir(ROOT)  # where the assets are
    run_on_device("study_precision.py", "--precisions", half, "--batch-size", 2, "--out", tmp_path / "precision.md")
    assert (tmp_path / "precision.md").read_text().count("|") > 20


def test_benchmark(tmp_path, tiny, scripts_run_here, half):
    words = [*tiny["benchmark.py"], "--questions", "updates,steps,published,sampling,rates,profiles"]
    run_on_device("benchmark.py", *words, "--precision", half, "--out", tmp_path)
    for name in words[-1].split(","):
        rows = json.loads((tmp_path / f"{name}.json").read_text())
        assert rows and not any("failed" in row for row in rows), name
    profiles = json.loads((tmp_path / "profiles.json").read_text())
    assert all(row["seconds"]["matrix products"] > 0 for row in profiles)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of the classifier of the digits, which is trained on the CPU always: once for all scripts."""
    folder = tmp_path_factory.mktemp("classifier") / "features"
    digits.reference(folder)
    return folder


def test_quickstart(tmp_path, tiny, scripts_run_here, classifier):
    shutil.copytree(classifier, tmp_path / "features")
    run_on_device("quickstart.py", *tiny["quickstart.py"], "--out", tmp_path)
    assert "FD-cnn@70" in (tmp_path / "report.md").read_text() and (tmp_path / "overview.png").exists()


def test_reproduce(tmp_path, tiny, scripts_run_here, classifier):
    shutil.copytree(classifier, tmp_path / "features")
    run_on_device("reproduce.py", *tiny["reproduce.py"], "--out", tmp_path)
    assert "## Fig. 5" in (tmp_path / "report.md").read_text() and (tmp_path / "fig5.png").exists()
    assert len(list((tmp_path / "features").iterdir())) == len(list(classifier.iterdir()))  # none was trained anew


@pytest.mark.parametrize("processes", [1, 2])
def test_train_under_torchrun(chain, tmp_path, processes):
    """In processes of their own, as users start them: one under DDP, on NCCL where there is a GPU; two where there are
    two GPUs."""
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} CUDA devices")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
               ROOT / "scripts" / "train.py", "--model.name", "FPDM-XS/2", *SMALL, "--data.latents", chain / "latents",
               "--run.results", tmp_path, "--optim.steps", 4, "--optim.micro_batch_size", 2]  # fmt: skip
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (found,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (found / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and all(np.isfinite(line["loss"]) for line in lines)
