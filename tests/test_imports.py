"""Who may import whom (docs/architecture.md), read from the imports themselves."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a package or module may not import of ours, the rest of its rules being general. A new one has the general rules.
LEAVES = ("config", "cost", "processes", "files", "precision", "seeding", "devices", "weightings", "lr_schedules",
          "injections", "block_options", "conditionings", "extent", "locks", "records", "hub", "damage")  # fmt: skip
ABOVE = ("loading", "validation", "pipeline", "export", "commands", "demo", "reproduction", "benchmarks", "on_gpu",
         "soak")  # fmt: skip
FORBIDDEN = {
    "models": {"data", "processes", "sampling", "training", "evaluation", "devices", *ABOVE},
    "data": {"models", "processes", "sampling", "training", "evaluation", *ABOVE},
    "training": {"sampling", "evaluation", *ABOVE},
    "sampling": {"models", "training", "evaluation", *ABOVE},
    "evaluation": {"models", "training", *ABOVE},
    "demo": {"models", "training", "evaluation", "validation", "pipeline", "export"},
    **{name: {"models", "data", "sampling", "training", "evaluation", *ABOVE} for name in LEAVES},
}
TOPMOST = {
    "commands",
    "demo",
    "reproduction",
    "benchmarks",
    "on_gpu",
    "soak",
}  # what nothing else imports
BESIDE = {"reproduction": {"commands"}, "on_gpu": {"benchmarks", "commands"}, "benchmarks": {"commands", "demo"},
          "commands": {"demo"}, "soak": {"commands"}}  # fmt: skip
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


def ours(path: Path) -> set[Path]:
    """The files of the package that a file imports."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        for length in range(len(parts), 1, -1):  # a name in a module, the module, or a package's __init__
            base = ROOT.joinpath(*parts[:length])
            file = next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file in EXISTING), None)
            if parts[0] == "fpdm" and file is not None:
                found.add(file)
                break
    return found - {path}


EXISTING = set(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_rules(path):
    own = subject(path)
    if own == "__init__":
        return
    theirs = {subject(file) for file in ours(path)} - {own}
    forbidden = theirs & (FORBIDDEN.get(own, set()) | TOPMOST - BESIDE.get(own, set()))
    assert not forbidden, f"{path.name} in {own} imports {forbidden}"
    assert not any(name.split(".")[0] in ("scripts", "tests") for name in imported(path))


def test_no_circles():
    """Module by module: whoever is imported knows nothing of the importer, however far away."""
    graph = {path: ours(path) for path in FILES if path.parent != ROOT / "fpdm" or path.name != "__init__.py"}
    order = TopologicalSorter({path: files & graph.keys() for path, files in graph.items()})
    order.prepare()  # CycleError names the circle


def test_the_rules_see_what_is_imported():
    """Were nothing found, the tests above would test nothing."""
    assert ROOT / "fpdm" / "models" / "blocks.py" in ours(ROOT / "fpdm" / "models" / "implicit.py")
    assert ROOT / "fpdm" / "config" / "__init__.py" in ours(ROOT / "fpdm" / "sampling" / "guidance.py")


@pytest.mark.parametrize("module", ["fpdm.models", "fpdm.processes", "fpdm.sampling.sampler", "fpdm.sampling.settings"])
def test_light_modules_stay_light(module):
    heavy = ("diffusers", "accelerate", "matplotlib", "torch_fidelity", "sklearn", "gradio")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_print_in_the_package():
    for path in FILES:
        if path.name == "cli.py":  # writes errors to stderr
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(getattr(call.func, "id", "") == "print" for call in calls), path
