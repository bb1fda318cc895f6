"""What is read from others runs no code, and nothing is fetched that was not asked for."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_no_script_asks_for_the_network(tmp_path, warm_python):
    """The data of the tests is on this machine, so nothing has to be fetched, not even a look for something newer."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("HF_HUB_OFFLINE", None)  # as a user has it
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "nothing was asked for"
