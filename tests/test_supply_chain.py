"""What is read from others runs no code, and nothing is fetched that was not asked for."""

import ast
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from fpdm.data.codec import open_codec
from fpdm.data.latent_formats import STATS, load_stats
from fpdm.evaluation.features import DINOv2, Inception
from fpdm.evaluation.weights import download_weights
from fpdm.models.convert import read_published
from fpdm.training.checkpoint import TRAINER, load_trainer

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "fpdm").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "cli.run(" in path.read_text())

WITHOUT_NETWORK = """
import socket, sys
from pathlib import Path

out, called = Path(sys.argv[1]), Path(sys.argv[1], "network.txt")

def refuse(*words, **settings):
    with called.open("a") as file:
        file.write(f"{words[1:]}\\n")
    raise OSError("no network")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)

from fpdm.soak.children import command, run
from fpdm.soak.preload import preload
from fpdm.soak.works import WORKS, Material

preload()
material = Material(out / "material")
material.make()
ran = [("evaluate", WORKS["evaluate"].words(material, out / "scored")),
       ("export", ["export", "--ckpt", material.run, "--out", out / "exported", "--with-vae"]),
       ("pipeline", ["export", "--ckpt", material.run, "--out", out / "pipeline", "--pipeline"]),
       ("plot", ["plot_run", "--runs", material.run, "--out", out / "curves.png"]),
       *((name, [name, "--help"]) for name in sys.argv[2:])]
for name, words in ran:
    ended = run(command(words), out / f"{name}.txt")
    assert ended.well, (name, ended.said[-2000:])
print(called.read_text() if called.exists() else "nothing was asked for")
"""


def calls(path: Path):
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def settings(node: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_runs_and_no_code_is_fetched(path):
    for name, node in calls(path):
        found = settings(node)
        assert name != "torch.load" or found.get("weights_only") == "True", f"{path}:{node.lineno}"
        assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "os.system"), path
        assert "trust_remote_code" not in found, f"{path}:{node.lineno}"
        assert found.get("allow_pickle", "False") == "False" or path.parts[-2] == "soak", f"{path}:{node.lineno}"


def test_the_test_sees_what_it_looks_for():
    assert any(name == "torch.load" for path in FILES for name, _ in calls(path))


class Hostile:
    """An object that makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


WRITERS = {
    "torch": torch.save,
    "older torch": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}
READERS = {  # the name of the file, how it is opened
    "--inception": ("weights.pth", lambda path: Inception(str(path))),
    "--dinov2": ("weights.pth", lambda path: DINOv2("dinov2-s", str(path))),
    "a download": ("weights-{}.pth", lambda path: download_weights(path.as_uri(), "inception")),
    "import_checkpoint.py": ("weights.pt", read_published),
    "import_latents.py": (STATS, lambda path: load_stats(path.parent)),
    "train.py --resume": (TRAINER, lambda path: load_trainer(path.parent)),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("name", "reader"), READERS.values(), ids=READERS)
def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch, writer, name, reader):
    """What the library that opens a file does with it is not seen in our code, so each is tried."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path, canary = tmp_path / "weights", tmp_path / "canary"
    writer({"weight": torch.zeros(2), "code": Hostile(canary)}, path)
    path = path.rename(tmp_path / name.format(hashlib.sha256(path.read_bytes()).hexdigest()[:8]))
    with pytest.raises(ValueError, match=name.partition("-{}")[0]) as caught:
        reader(path)
    assert not canary.exists() and "\n" not in str(caught.value)
    with path.open("rb") as file:  # the file does what it says
        torch.load(file, weights_only=False) if writer is not WRITERS["pickle"] else pickle.load(file)
    assert canary.exists()


def test_a_vae_that_is_a_pickle_is_not_read(tiny_vae, tmp_path):
    """diffusers would read it with weights_only."""
    vae, _ = AutoencoderKL.from_pretrained(tiny_vae, output_loading_info=True)
    vae.save_pretrained(tmp_path / "vae", safe_serialization=False)
    with pytest.raises(ValueError, match=r"vae .*: its weights are a pickle .* only safetensors are read; .* convert"):
        open_codec(str(tmp_path / "vae"))
    AutoencoderKL.from_pretrained(str(tmp_path / "vae")).save_pretrained(tmp_path / "other")  # as the error says
    assert open_codec(str(tmp_path / "other")).fingerprint == open_codec(str(tiny_vae)).fingerprint
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="holds no AutoencoderKL that can be opened"):
        open_codec(str(tmp_path / "vae"))


def test_a_download_is_checked(tmp_path, monkeypatch):
    """By the hash in its name; what has another hash is not kept."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    torch.save({"weight": torch.arange(2)}, path)
    path = path.rename(tmp_path / f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    assert download_weights(path.as_uri(), "inception")["weight"].tolist() == [0, 1]
    other = path.rename(tmp_path / "weights-0123abcd.pth")
    with pytest.raises(ValueError, match=r"inception weights from .*invalid hash value .* --inception PATH"):
        download_weights(other.as_uri(), "inception")
    assert [kept.name for kept in (tmp_path / "cache").rglob("*.pth")] == [path.name]


def test_no_script_asks_for_the_network(tmp_path, warm_python):
    """The data of the tests is on this machine, so nothing has to be fetched, not even a look for something newer."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("HF_HUB_OFFLINE", None)  # as a user has it
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "nothing was asked for"
