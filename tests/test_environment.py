"""Whether an environment satisfies pyproject.toml is judged rightly."""

import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_environment.py"


@pytest.fixture
def lacking():
    return runpy.run_path(str(SCRIPT))["lacking"]


def project(*dependencies, python=">=3.10"):
    return {
        "requires-python": python,
        "dependencies": list(dependencies),
        "optional-dependencies": {"x": ["absent-x>1"]},
    }


def test_present_absent_and_too_old(lacking):
    version = metadata.version("torch")
    assert lacking(project("torch>=2.0", "numpy"), []) == []
    assert lacking(project("torch>=99", "no-such-package"), []) == [f"torch>=99 (found {version})", "no-such-package"]
    assert lacking(project(), ["x"]) == ["absent-x>1"]


def test_python_version(lacking):
    (problem,) = lacking(project(python=">=3.99"), [])
    assert problem.startswith("Python >=3.99") and sys.version.split()[0] in problem


def test_this_environment_satisfies_the_project():
    """The tests run in an environment that scripts/test.sh chose or made."""
    import subprocess

    done = subprocess.run([sys.executable, SCRIPT, "--extras", "test"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
