"""Who may import whom (docs/architecture.md), read from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "precision": set(),
    "config": {"precision"},
    "diffusion": set(),
    "seeding": set(),
    "config_files": set(),
    "cli": {"config_files", "devices"},
    "files": set(),
    "devices": set(),
    "models": {"config"},
    "data": {"config", "precision", "devices", "seeding", "files"},
    "training": {"precision", "devices", "models", "diffusion", "data", "config", "seeding", "files"},
    "sampling": {"devices", "diffusion", "data", "config", "seeding", "files"},
    "evaluation": {"sampling", "devices", "diffusion", "data", "config", "seeding", "files"},
    "chain": {"files"},
    "reproduction": {
        "chain",
        "devices",
        "models",
        "data",
        "config",
        "sampling",
        "training",
        "evaluation",
        "loading",
        "files",
    },
    "benchmarks": {
        "chain",
        "devices",
        "diffusion",
        "models",
        "data",
        "config",
        "sampling",
        "training",
        "evaluation",
        "loading",
    },
    "on_gpu": {"chain", "files", "evaluation", "benchmarks"},
    "export": {"models", "data", "training", "files"},
    "loading": {"precision", "export", "devices", "models", "diffusion", "data", "config", "sampling", "training"},
    "schedulers": {"diffusion"},
    "pipeline": {"schedulers", "loading", "export", "models", "diffusion", "data", "config", "sampling"},
}
ALLOWED["commands"] = ALLOWED.keys() - {"chain", "reproduction", "benchmarks", "on_gpu"}  # the topmost in the wheel
FILES = sorted((ROOT / "fpdm").rglob("*.py"))


def subject(path: Path) -> str:
    return path.relative_to(ROOT / "fpdm").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_rules(path):
    own = subject(path)
    if own == "__init__":
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("fpdm.")}
    forbidden = ours - ALLOWED[own] - {own}
    assert not forbidden, f"{path.name} in {own} imports {forbidden}"
    assert not any(name.split(".")[0] == "scripts" for name in imported(path))


@pytest.mark.parametrize("module", ["fpdm.models", "fpdm.diffusion", "fpdm.sampling.sampler"])
def test_light_modules_stay_light(module):
    heavy = ("diffusers", "accelerate", "matplotlib", "torch_fidelity", "sklearn")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_print_in_the_package():
    for path in FILES:
        if path.name == "cli.py":  # writes errors to stderr
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(getattr(call.func, "id", "") == "print" for call in calls), path
