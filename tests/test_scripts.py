"""The scripts as a user runs them: one chain from images to a score, and one line for each mistake."""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from fpdm.evaluation.features import Features
from fpdm.pipeline import FPDMPipeline

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


def run(*words, processes=1, cwd=ROOT):
    """A script in a process of its own."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("FPDM_DEBUG", None)
    command = [*launcher, str(ROOT / "scripts" / str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=cwd)


PROGRESS = {
    "train_vae.py": "train vae",
    "encode_latents.py": "encode",
    "import_latents.py": "import",
    "train.py": "train",
    "sample.py": "sample",
}


def succeed(*words, **kwargs) -> str:
    """What a script prints; its progress bar is checked on the way."""
    done = run(*words, **kwargs)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert f"{PROGRESS.get(words[0], 'cnn features')}: 100%" in done.stderr or "inception" in str(words), done.stderr
    return done.stdout


def run_script(*words) -> str:
    """What a script without a progress bar prints."""
    done = run(*words)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def fail(*words, status: int = 2) -> str:
    """The one line that a mistake is told in; run in this process, which has everything imported."""
    script, errors = str(ROOT / "scripts" / str(words[0])), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "argv", [script, *map(str, words[1:])])
        patch.delenv("FPDM_DEBUG", raising=False)
        runpy.run_path(script, run_name="__main__")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert exit.value.code == status, f"{words}: {exit.value.code}\n{errors.getvalue()[-3000:]}"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors.getvalue(), errors.getvalue()[-3000:]
    return lines[0]


def test_mistakes_in_a_process_of_their_own():
    for words, says in (
        (["train.py"], "data.latents is not set"),
        (["sample.py", "--stepps", 3], "did you mean --steps?"),
    ):
        done = run(*words)
        assert done.returncode == 2 and done.stderr.count("error: ") == 1 and says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def chain(tmp_path_factory, image_folder):
    """A VAE, latents and two short runs, made by the scripts."""
    root = tmp_path_factory.mktemp("chain")
    small = ["--resolution", 16]
    said = succeed("train_vae.py", "--images", image_folder, *small, "--widths", "[8,8]", "--steps", 20,
                   "--batch-size", 8, "--out", root / "vae")  # fmt: skip
    assert "reconstruction MSE" in said and "2 held-out images" in said
    said = succeed("encode_latents.py", "--images", image_folder, *small, "--vae", root / "vae",
                   "--out", root / "latents")  # fmt: skip
    assert "24 latents (4, 8, 8), 3 class(es), 2 flip(s)" in said
    for name in ("FPDM-XS/2", "DiT-XS/2"):
        said = succeed("train.py", "--model.name", name, "--model.hidden_size", 32, "--model.num_heads", 2,
                       "--data.latents", root / "latents", "--run.results", root / "runs", "--optim.steps", 4,
                       "--optim.batch_size", 8, "--run.log_every", 2, "--run.preview_every", 4)  # fmt: skip
        assert "block passes" in said and "step       4" in said
    return root


def test_training_leaves_what_it_says(chain):
    for run_name in ("000-FPDM-XS-2", "001-DiT-XS-2"):
        folder = chain / "runs" / run_name
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "log.jsonl", "log.txt", "samples", "checkpoints"} <= names
        assert Image.open(folder / "samples" / "0000004.png").size == (4 * 18 + 2, 4 * 18 + 2)
    assert (chain / "vae" / "reconstruction.png").exists()
    facts = json.loads((chain / "vae" / "reconstruction.json").read_text())
    assert facts["mse"] > 0 and facts["settings"]["steps"] == 20


def test_resume_latest(chain, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(chain / "runs", runs, symlinks=True)
    config = runs / "000-FPDM-XS-2" / "config.yaml"
    said = succeed("train.py", "--config", config, "--run.results", runs, "--optim.steps", 6, "--resume", "latest")
    assert "000-FPDM-XS-2" in said and "step       6" in said
    assert (runs / "000-FPDM-XS-2" / "checkpoints" / "latest").resolve().name == "0000006"


def test_samples_and_score(chain, tmp_path, image_folder):
    out = tmp_path / "samples"
    flags = ["--ckpt", chain / "runs" / "000-FPDM-XS-2", "--budget", 12, "--iterations", 2, "--out", out, "--seed", 5]
    said = succeed("sample.py", *flags, "--num-samples", 6, "--batch-size", 4)
    assert "3 timesteps (999..0), 2 explicit blocks + 2 iterations each: 12 block passes" in said
    assert "GFLOPs per image" in said and "ema weights" in said and "images/s" in said.splitlines()[-1]
    recipe = json.loads((out / "samples.json").read_text())
    assert recipe["block_passes"] == 12 and recipe["sampling"]["seed"] == 5 and recipe["weights"] == "ema"
    with np.load(out / "samples.npz") as file:
        first = file["arr_0"]
    assert first.shape == (6, 16, 16, 3)

    # extended and mended: only what is missing is drawn
    (out / "000001.png").unlink()
    broken = out / "000004.png"
    broken.write_bytes(broken.read_bytes()[:50])
    said = succeed("sample.py", *flags, "--num-samples", 9, "--batch-size", 2, processes=2)
    assert "9 images, 5 of them new" in said
    assert len(list(out.glob("0*.png"))) == 9
    with np.load(out / "samples.npz") as file:
        assert np.abs(file["arr_0"][:6].astype(int) - first).max() <= 1
    assert "sampling.seed was 5, is 6" in fail("sample.py", *flags[:-1], 6, "--num-samples", 9)

    (out / "000009.png").write_bytes((out / "000000.png").read_bytes())
    assert "10 images, its samples.json says 9" in fail("evaluate.py", "--samples", out, "--reference", image_folder)
    (out / "000009.png").unlink()
    said = succeed("evaluate.py", "--samples", out, "--reference", image_folder, "--features", "cnn",
                   "--cache", tmp_path / "cache")  # fmt: skip
    assert "FD-cnn@9" in said and "noise_floor" in said
    score = json.loads((out / "score-cnn.json").read_text())
    assert score["images"] == 9 and score["reference_images"] == 24
    assert score["sampling"]["block_passes"] == 12


def test_reference_scores_itself_near_zero(tmp_path):
    from fpdm.data.batches import centre_crop
    from fpdm.data.images import open_images

    digits = open_images("digits")
    for i in range(len(digits)):
        centre_crop(digits.load(i), 16).save(tmp_path / f"{i:06d}.png")
    out = tmp_path / "scores" / "score.json"
    succeed("evaluate.py", "--samples", tmp_path, "--reference", "digits", "--features", "cnn",
            "--cache", tmp_path / "cache", "--out", out)  # fmt: skip
    score = json.loads(out.read_text())
    assert abs(score["FD-cnn@1797"]) < 1e-3 < score["noise_floor"]
    assert score["precision"] == score["recall"] == 1


@pytest.fixture
def cropped(tmp_path, image_folder):
    """A folder of samples, 12 of the images."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))[:12]):
        Image.open(path).crop((0, 0, 16, 16)).save(samples / f"{i:06d}.png")
    return samples


def test_inception_scores_on_two_processes(cropped, tmp_path, image_folder, inception_weights):
    said = succeed("evaluate.py", "--samples", cropped, "--inception", inception_weights, "--reference", image_folder,
                   "--cache", tmp_path / "cache", processes=2)  # fmt: skip
    assert "FID@12" in said and "FID-50K" not in said and "sFID@12" in said and "IS" in said
    score = json.loads((cropped / "score-inception.json").read_text())
    assert len(score["extractor"]) == 16 and score["IS"] >= 1 and score["reference_images"] == 24


class LightInception(torch.nn.Module):
    """Features of Inception's kinds, in few dimensions: matrices of 2048 take CI minutes."""

    name = "inception"

    def __init__(self, weights):
        super().__init__()

    def features(self, images):
        means = images.float().flatten(1).unflatten(1, (12, -1)).mean(-1)
        return Features(means, means[:, :5], means / 40)


def test_references_made_once_score_the_same(cropped, tmp_path, image_folder, monkeypatch):
    """From images, from the file of their statistics, and from a file as ADM makes them."""
    monkeypatch.setattr("fpdm.evaluation.features.Inception", LightInception)

    def evaluate(*words) -> dict:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words), "--out", str(tmp_path / "score.json")])
        runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        return json.loads((tmp_path / "score.json").read_text()) if (tmp_path / "score.json").exists() else {}

    common, made = ["--samples", cropped, "--cache", tmp_path / "cache"], tmp_path / "reference.npz"
    assert evaluate("--make-reference", made, "--reference", image_folder, "--resolution", 16,
                    "--cache", tmp_path / "other") == {}  # fmt: skip
    score = evaluate(*common, "--reference", image_folder, "--bootstrap", 3)
    assert score["FID@12_std"] > 0 and score["reference_images"] == 24
    again = evaluate(*common, "--reference", made)
    for name in ("FID@12", "sFID@12", "IS", "kid", "precision", "recall", "noise_floor"):
        assert again[name] == pytest.approx(score[name], rel=1e-6, abs=1e-9), name
    with np.load(made) as file:
        images = np.stack([np.array(Image.open(p)) for p in sorted(cropped.glob("0*.png"))])
        np.savez(tmp_path / "VIRTUAL.npz", arr_0=images, **{k: file[k] for k in ("mu", "sigma", "mu_s", "sigma_s")})
    adm = evaluate(*common, "--reference", tmp_path / "VIRTUAL.npz")
    assert adm["FID@12"] == pytest.approx(score["FID@12"]) and adm["sFID@12"] == pytest.approx(score["sFID@12"])
    assert adm["precision"] == adm["recall"] == 1  # against its images, which are the samples
    assert "made with resolution 16, this is for 8" in fail("evaluate.py", "--reference", made, "--resolution", 8,
                                                            "--self-test")  # fmt: skip
    assert "holds statistics; features=cnn needs the images" in fail("evaluate.py", *common, "--reference", made,
                                                                     "--features", "cnn")  # fmt: skip


def test_self_test(tmp_path):
    said = succeed("evaluate.py", "--self-test", "--reference", "digits", "--features", "cnn", "--resolution", 16,
                   "--cache", tmp_path)  # fmt: skip
    assert said.count("| ok |") == 7 and "WRONG" not in said


def test_dit_goes_through_the_same_sampler(chain, tmp_path):
    said = succeed("sample.py", "--ckpt", chain / "runs" / "001-DiT-XS-2", "--budget", 30, "--out", tmp_path / "s",
                   "--num-samples", 2, "--sampler", "ddpm", "--cfg-scale", 2, "--weights", "model")  # fmt: skip
    assert "2 timesteps (999..0), 12 blocks each: 24 block passes" in said


def test_broken_image_is_named_or_skipped(tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "set")
    (tmp_path / "set" / "cow" / "2.png").write_bytes(b"broken")
    flags = ["--images", tmp_path / "set", "--resolution", 8, "--vae", "pixels"]
    assert "cow/2.png: broken image" in fail("encode_latents.py", *flags, "--out", tmp_path / "a")
    said = succeed("encode_latents.py", *flags, "--out", tmp_path / "b", "--skip-broken", "true")
    assert "23 latents" in said and "1 broken image(s) skipped" in said


def test_stopped_encoding_is_continued_by_the_same_command(tmp_path, image_folder):
    """A broken image stops a run; mended, it goes on, and the second run of a finished store does nothing."""
    shutil.copytree(image_folder, tmp_path / "set")
    image = tmp_path / "set" / "cow" / "2.png"
    whole = image.read_bytes()
    image.write_bytes(b"broken")
    command = ["encode_latents.py", "--images", tmp_path / "set", "--resolution", 8, "--vae", "pixels",
               "--out", tmp_path / "s", "--batch-size", 2, "--shard", 8]  # fmt: skip
    assert "cow/2.png" in fail(*command)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.bin")}
    assert set(stamps) == {"shard-00000.bin", "shard-00001.bin"}
    image.write_bytes(whole)
    for _ in range(2):
        done = run(*command)
        assert done.returncode == 0 and "24 latents" in done.stdout, done.stderr
        assert {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in stamps} == stamps
    assert "shard was 8, is 6; choose another --out" in fail(*command[:-1], 6)


def test_imported_latents_are_trained_on(chain, tmp_path):
    source, rng = tmp_path / "extracted", np.random.default_rng(0)
    for kind in ("features", "labels"):
        (source / f"set_{kind}").mkdir(parents=True)
    for i in range(20):
        np.save(source / "set_features" / f"{i}.npy", rng.standard_normal((1, 4, 8, 8), np.float32))
        np.save(source / "set_labels" / f"{i}.npy", np.array([i % 3]))
    said = succeed("import_latents.py", "--source", source, "--vae", chain / "vae", "--out", tmp_path / "store")
    assert "20 latents (4, 8, 8), 3 class(es), 1 flip(s)" in said
    succeed("train.py", "--model.name", "DiT-XS/4", "--model.depth", 1, "--data.latents", tmp_path / "store",
            "--data.mirror", "false", "--run.results", tmp_path / "runs", "--optim.steps", 2,
            "--optim.batch_size", 4)  # fmt: skip


def test_exported_folder_stands_alone(chain, tmp_path):
    run = tmp_path / "gone" / "run"
    shutil.copytree(chain / "runs" / "000-FPDM-XS-2", run, symlinks=True)
    draw = ["--steps", 2, "--iterations", 2, "--num-samples", 2, "--seed", 3]
    out = tmp_path / "exported"
    said = run_script("export.py", "--ckpt", run, "--out", out, "--with-vae")
    assert "ema weights" in said
    succeed("sample.py", "--ckpt", run, *draw, "--out", tmp_path / "a")
    shutil.rmtree(run)
    assert {"config.json", "model.safetensors", "sampling.json", "README.md", "vae"} <= {p.name for p in out.iterdir()}
    for path in out.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), f"{path.name} says where on this machine it was made"
    assert {path.stat().st_mode & 0o444 for path in out.rglob("*") if path.is_file()} == {0o444}
    card = (out / "README.md").read_text()
    assert card.startswith("---") and "training steps | 4 of 4" in card and "license: apache-2.0" in card
    succeed("sample.py", "--ckpt", out, *draw, "--out", tmp_path / "b")
    for i in range(2):
        assert (tmp_path / "a" / f"{i:06d}.png").read_bytes() == (tmp_path / "b" / f"{i:06d}.png").read_bytes()
    assert "weights=model: " in fail("sample.py", "--ckpt", out, *draw, "--weights", "model", "--out", tmp_path / "c")
    dit = ("export.py", "--ckpt", chain / "runs" / "001-DiT-XS-2")
    assert "already exists and is not empty" in fail(*dit, "--out", out)
    notes, noted = tmp_path / "notes.md", tmp_path / "noted"
    assert "notes.md" in fail(*dit, "--out", noted, "--notes", notes) and not noted.exists()
    notes.write_text("FID 3.")
    assert "a pipeline has the general card" in fail(*dit, "--out", noted, "--notes", notes, "--pipeline")
    run_script(*dit, "--out", noted, "--notes", notes)
    card = (noted / "README.md").read_text()
    assert card.rstrip().endswith("FID 3.") and "Images:" not in card and "| parameters |" in card


def test_exported_as_a_pipeline_and_uploaded(chain, tmp_path, monkeypatch):
    """The same folder is a pipeline for diffusers and a checkpoint for sample.py."""
    out, sent = tmp_path / "pipe", []
    monkeypatch.setattr("fpdm.export.create_repo", lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("fpdm.export.upload_folder", lambda **kwargs: sent.append(kwargs) or "https://hub/commit/1")
    words = ["--ckpt", chain / "runs" / "000-FPDM-XS-2", "--out", out, "--pipeline", "--push-to", "someone/fpdm"]
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    assert sent[0]["repo_id"] == "someone/fpdm" and sent[0]["folder_path"] == str(out)
    pipe = FPDMPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert pipe([1, 2], budget=12, iterations=2).images[0].size == (16, 16)
    assert "training steps | 4 of 4" in (out / "README.md").read_text()
    succeed("sample.py", "--ckpt", out, "--steps", 2, "--num-samples", 2, "--out", tmp_path / "s")


def test_published_checkpoint_is_sampled_from(recorded, chain, tmp_path):
    torch.save({"ema": recorded("dit").state}, tmp_path / "dit.pt")
    heads = recorded("dit").config["num_heads"]
    said = run_script("import_checkpoint.py", "--source", tmp_path / "dit.pt", "--vae", chain / "vae", "--out",
                      tmp_path / "dit", "--num-heads", heads)  # fmt: skip
    assert "DiT) ->" in said
    succeed("sample.py", "--ckpt", tmp_path / "dit", "--steps", 3, "--sampler", "dpm++", "--cfg-scale", 2,
            "--cfg-interval", "0,600", "--num-samples", 2, "--trace", 1, "--out", tmp_path / "s")  # fmt: skip
    assert (tmp_path / "s" / "trace" / "filmstrip.png").exists()


def test_mistakes_get_one_clear_line(chain, tmp_path, image_folder):
    fpdm, dit = chain / "runs" / "000-FPDM-XS-2", chain / "runs" / "001-DiT-XS-2"
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {name: FPDM-XS/2, dpeth: 3}\n")
    train = ["train.py", "--data.latents", chain / "latents", "--run.results", tmp_path / "runs"]
    draw = ["sample.py", "--num-samples", 1, "--out", tmp_path / "out", "--ckpt"]
    cases = {
        "unrecognized arguments: --optim.setps": [*train, "--optim.setps", 3],
        "does not accept option 'dpeth'": [*train, "--config", bad],
        "budget=2 does not hold one timestep of 3 block passes": [*draw, fpdm, "--budget", 2, "--iterations", 1],
        "iterations=0: at least 1": [*draw, fpdm, "--budget", 20, "--iterations", 0],
        "sjfb.grad=0": [*train, "--sjfb.grad", 0],
        "precision=fp16 needs a GPU; on": ["encode_latents.py", "--vae", "pixels", "--precision", "fp16"],
        "source is not set": ["import_latents.py"],
        "neither <name>_features and": ["import_latents.py", "--source", tmp_path / "empty"],
        "batch_sizes=0: at least 1": ["benchmark.py", "--batch-sizes", 0],
        "questions='speed': choose one of updates": ["benchmark.py", "--questions", "speed"],
        "default VAE has 4 latent channels, not 3": ["benchmark.py", "--latent", "3,32,32", "--out", tmp_path / "b"],
        "does not exist": ["encode_latents.py", "--images", tmp_path / "absent", "--vae", "pixels"],
        "no image in it": ["encode_latents.py", "--images", tmp_path / "empty", "--vae", "pixels"],
        "labels of this model are 0..2": [*draw, fpdm, "--budget", 20, "--classes", "[3]"],
        "iterations=2: an explicit model": [*draw, dit, "--budget", 20, "--iterations", 2],
        "3 latent channels, but the model has 4": [*draw, fpdm, "--budget", 20, "--vae", "pixels"],
        "another experiment (model.name was": [*train, "--resume", fpdm],
        "precision=fp16 needs a GPU": [*draw, fpdm, "--budget", 20, "--precision", "fp16"],
        "trace=9: at most batch_size=8": [*draw, fpdm, "--budget", 20, "--trace", 9, "--batch-size", 8],
        "holds no checkpoint": [*draw, tmp_path / "empty", "--budget", 20],
        "data.latents is not set": ["train.py"],
        "reference is not set": ["evaluate.py", "--samples", tmp_path],
        "samples is not set": ["evaluate.py", "--reference", "digits"],
        "resolution is not set": ["evaluate.py", "--reference", "digits", "--self-test"],
        "resolution=9 with samples": ["evaluate.py", "--reference", "digits", "--samples", tmp_path, "--resolution", 9],
        "samples nowhere does not exist": ["evaluate.py", "--reference", "digits", "--samples", "nowhere"],
        "make_reference with features=cnn": ["evaluate.py", "--reference", "digits", "--make-reference", "r.npz",
                                             "--features", "cnn", "--resolution", 16],
        "must end with .npz": ["evaluate.py", "--reference", "digits", "--make-reference", "r", "--resolution", 16],
        "only one of them is possible": ["evaluate.py", "--reference", "digits", "--make-reference", "r.npz",
                                         "--self-test", "--resolution", 16],
        "none of the timesteps": [*draw, fpdm, "--steps", 3, "--cfg-scale", 2, "--cfg-interval", "1,2"],
        "is a file, not a checkpoint folder; for a published .pt use": [*draw, bad, "--budget", 20],
        "bootstrap=1: a standard": ["evaluate.py", "--reference", "digits", "--samples", tmp_path, "--bootstrap", 1],
    }  # fmt: skip
    for says, words in cases.items():
        assert says in fail(*words), words
    diverging = [*train, "--model.name", "DiT-XS/4", "--model.depth", 1, "--optim.lr", "1e6", "--optim.batch_size", 4,
                 "--optim.steps", 30, "--optim.max_skipped", 3]  # fmt: skip
    assert "had gradients that are not finite" in fail(*diverging, status=4)
