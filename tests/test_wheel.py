"""The wheel, installed into a folder of its own and used from an empty one: what is in it, and its commands."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CLONE_ONLY = ("benchmarks", "chain", "on_gpu", "reproduction", "soak")  # they run scripts/, or need configs/ or tests/


def pip(*words) -> None:
    """pip as a user runs it, but for the network."""
    options = ["--no-deps", "--no-index", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", *map(str, words), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the checkout: a build leaves files beside its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("fpdm", "scripts", "tests", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel is installed into, with bin/."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def execute(site, tmp_path_factory):
    """Runs a command in an empty folder, where the wheel is the only fpdm that comes before the environment's own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FPDM_DEBUG")}
    environment |= {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    folder = tmp_path_factory.mktemp("empty")

    def run(command, *words) -> subprocess.CompletedProcess:
        line = [str(word) for word in (command, *words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)

    yield run
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def succeed(execute, site):
    """What an installed command prints."""

    def run(name, *words) -> str:
        done = execute(site / "bin" / name, *words)
        assert done.returncode == 0, f"{name} {words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


def modules(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in (root / "fpdm").rglob("*.py")}


def test_it_holds_the_package_and_nothing_else(wheel, site):
    names = zipfile.ZipFile(wheel).namelist()
    information = f"fpdm-{wheel.name.split('-')[1]}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == modules(site)
    assert modules(site) == {name for name in modules(ROOT) if name.split("/")[1] not in CLONE_ONLY}
    assert information + "licenses/LICENSE" in names


def test_nothing_in_it_names_what_is_left_out(site):
    """Imports inside functions too, which importing a module does not show."""
    for path in (site / "fpdm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                names = [f"{module}{alias.name}" for alias in node.names]
                assert not any(name.startswith(tuple(f"fpdm.{part}" for part in CLONE_ONLY)) for name in names), path


EVERYTHING = """
import importlib, pkgutil, sys
import fpdm
assert fpdm.__file__.startswith(sys.argv[1]), fpdm.__file__
for module in pkgutil.walk_packages(fpdm.__path__, "fpdm."):
    assert importlib.import_module(module.name).__file__.startswith(sys.argv[1]), module
for name in fpdm.__all__:
    getattr(fpdm, name)
"""


def test_every_module_and_every_public_name_is_imported(execute, site):
    done = execute(sys.executable, "-c", EVERYTHING, site)
    assert done.returncode == 0, done.stderr[-4000:]


def test_each_command_is_a_script_of_the_clone_too(site):
    names = sorted(path.stem for path in (ROOT / "fpdm" / "commands").glob("*.py") if path.stem != "__init__")
    assert sorted(path.name for path in (site / "bin").iterdir()) == ["fpdm-" + n.replace("_", "-") for n in names]
    for name in names:
        script = (ROOT / "scripts" / f"{name}.py").read_text()
        assert f"\nfrom fpdm.commands.{name} import run\n" in script
        assert "\ndef " not in script and "\nclass " not in script, f"{name}: one implementation, in the package"


def test_a_mistake_gets_one_line(execute, site):
    done = execute(site / "bin" / "fpdm-encode-latents", "--shard", 0)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and "shard=0: at least 1" in done.stderr


@pytest.fixture(scope="module")
def trained(succeed, tmp_path_factory) -> Path:
    """A run of a few steps on the digits."""
    root = tmp_path_factory.mktemp("trained")
    said = succeed("fpdm-encode-latents", "--images", "digits", "--vae", "pixels", "--resolution", 8,
                   "--out", root / "latents")  # fmt: skip
    assert "1,797 latents (3, 8, 8), 10 class(es)" in said
    said = succeed("fpdm-train", "--model.name", "FPDM-XS/2", "--model.hidden_size", 32, "--model.num_heads", 2,
                   "--data.latents", root / "latents", "--run.results", root / "runs", "--run.preview_every", 0,
                   "--run.log_every", 2, "--optim.steps", 4, "--optim.batch_size", 8)  # fmt: skip
    assert "step       4" in said
    (run,) = (root / "runs").iterdir()
    return run


def test_trained_sampled_and_scored(succeed, trained, tmp_path):
    samples = tmp_path / "samples"
    said = succeed("fpdm-sample", "--ckpt", trained, "--budget", 12, "--iterations", 2, "--num-samples", 9,
                   "--out", samples)  # fmt: skip
    assert "12 block passes" in said and len(list(samples.glob("0*.png"))) == 9
    said = succeed("fpdm-evaluate", "--samples", samples, "--reference", "digits", "--features", "cnn",
                   "--cache", tmp_path / "cache")  # fmt: skip
    assert "FD-cnn@9" in said
    assert json.loads((samples / "score-cnn.json").read_text())["reference_images"] == 1797


def test_released_model_is_sampled(succeed, tmp_path):
    succeed("fpdm-sample", "--ckpt", ROOT / "assets" / "fpdm-digits", "--budget", 12, "--iterations", 1,
            "--num-samples", 2, "--out", tmp_path)  # fmt: skip
    assert Image.open(tmp_path / "000001.png").size == (32, 32)
