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


STUB = """#!/usr/bin/env bash
# Stands in for an interpreter: notes what it is asked, satisfies pyproject.toml only if told so.
echo "$(basename "$(dirname "$(dirname "$0")")") $*" >> "$CALLS"
case "$*" in
    *check_environment*) [ -e "$STATE/$(basename "$(dirname "$(dirname "$0")")")-ready" ] ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install"*) touch "$STATE/.venv-ready" ;;
esac
"""


@pytest.mark.parametrize("ready", [True, False], ids=["active environment", "new .venv"])
def test_scripts_use_the_active_environment_or_make_their_own(tmp_path, ready):
    import os
    import shutil
    import subprocess

    root, active, state = tmp_path / "project", tmp_path / "active" / "bin", tmp_path / "state"
    shutil.copytree(SCRIPT.parent, root / "scripts")
    for folder in (active, state):
        folder.mkdir(parents=True)
    (active / "python3").write_text(STUB)
    (active / "python3").chmod(0o755)
    if ready:
        (state / "active-ready").touch()
    calls = tmp_path / "calls"
    environment = os.environ | {"PATH": f"{active}:{os.environ['PATH']}", "CALLS": str(calls), "STATE": str(state)}
    for _ in range(2):
        done = subprocess.run(
            ["bash", root / "scripts" / "test.sh", "-x"], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
    said = calls.read_text().splitlines()
    assert [line for line in said if "pytest" in line] == [
        f"{'active' if ready else '.venv'} -m pytest -n 2 --dist loadfile -x"
    ] * 2
    assert sum("pip install" in line for line in said) == (0 if ready else 1)  # once is enough
    assert ready or any("-e .[test]" in line for line in said)


def test_conda_pins_run_on_v100s_and_satisfy_the_project():
    """torch 2.7 is the last whose default builds (CUDA 12.6) hold code for compute capability 7.0."""
    import yaml
    from packaging.requirements import Requirement

    try:
        import tomllib
    except ImportError:
        from pip._vendor import tomli as tomllib

    root = SCRIPT.parents[1]
    conda = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    assert set(pins) == {"torch", "torchvision"} and pins["torch"].startswith("2.7.")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.name not in pins or requirement.specifier.contains(pins[requirement.name])
    assert "Apache License" in (root / "LICENSE").read_text()[:200]


def test_no_source_file_is_ignored_by_git():
    """A pattern such as `data/` would leave fpdm/data out of every clone."""
    import shutil
    import subprocess

    root = SCRIPT.parents[1]
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(path.relative_to(root)) for folder in ("fpdm", "scripts", "tests", "configs", "docs")
             for path in (root / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]  # fmt: skip
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"], input="\n".join(files), text=True, capture_output=True, cwd=root
    )
    assert done.stdout == ""


def test_lower_bounds_are_pins_of_every_requirement(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    lower_bounds = runpy.run_path(str(SCRIPT.with_name("lower_bounds.py")))["lower_bounds"]
    assert lower_bounds(
        {"dependencies": ["a>=1.2", "b[y,x]>=3"], "optional-dependencies": {"t": ["c>=4,<5", "a>=1.2"]}}, ["t"]
    ) == ["a==1.2", "b[x,y]==3", "c==4"]
    with pytest.raises(ValueError, match="b has no lower bound"):
        lower_bounds({"dependencies": ["b"]}, [])


def test_lower_bounds_of_this_project():
    import subprocess

    done = subprocess.run([sys.executable, SCRIPT.with_name("lower_bounds.py")], capture_output=True, text=True)
    pins = [pin.partition("==") for pin in done.stdout.split()]
    assert done.returncode == 0 and len(pins) > 20 and all(version for _, _, version in pins), done.stderr
    assert {"torch", "jsonargparse[signatures]"} <= {name for name, _, _ in pins}


def test_the_site_needs_nothing_that_the_tests_do_not_install():
    """So that the tests build it, scripts/docs.sh finds its packages in the environment of the tests."""
    project = runpy.run_path(str(SCRIPT))["read_project"]()
    extras = project["optional-dependencies"]
    assert set(extras["docs"]) <= set(extras["test"])


def test_the_page_needs_nothing_that_the_tests_do_not_install():
    extras = runpy.run_path(str(SCRIPT))["read_project"]()["optional-dependencies"]
    assert set(extras["demo"]) <= set(extras["test"])


def test_citation_has_the_version_and_the_paper():
    import yaml

    project = runpy.run_path(str(SCRIPT))["read_project"]()
    citation = yaml.safe_load((SCRIPT.parents[1] / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], "Apache-2.0")
    paper = citation["preferred-citation"]
    assert paper["title"] == "Fixed Point Diffusion Models" and paper["year"] == 2024
    assert [author["family-names"] for author in paper["authors"]] == ["Bai", "Melas-Kyriazi"]


def test_workflow_runs_scripts_that_exist():
    import yaml

    root = SCRIPT.parents[1]
    jobs = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", ".ci/lower-bounds"]
    for command in commands:
        assert (root / command).stat().st_mode & 0o111, f"{command} is not executable"
    assert (
        f'"{runpy.run_path(str(SCRIPT))["read_project"]()["requires-python"].removeprefix(">=")}"'
        in (root / ".github" / "workflows" / "ci.yml").read_text()
    ), "no job has the oldest Python"
