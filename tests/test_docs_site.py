"""The documentation as a site: built without a warning, complete, and without a request to another site."""

import ast
import html
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings", "griffe")
MODULES = sorted(
    path for path in (ROOT / "fpdm").rglob("*.py") if not any(part.startswith("_") for part in path.parts[-2:])
)
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)}: not installed (pip install -e .[docs])")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as scripts/docs.sh builds it."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in said, said
    return folder


def page_of(site: Path, module: Path) -> str:
    return (site / "reference" / module.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")


def test_every_public_module_has_a_page(site):
    assert len(MODULES) > 50
    for module in MODULES:
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        assert f'id="{name}"' in page_of(site, module), name


def test_no_word_of_a_public_docstring_is_lost(site):
    """Sections and lists are made of docstrings; what they say is all there."""
    for module in MODULES:
        page = re.sub(r'<details class="mkdocstrings-source">.*?</details>', "", page_of(site, module), flags=re.DOTALL)
        words = set(re.findall(r"\w+", html.unescape(re.sub(r"<[^>]+>", "", page)))) | {"Args"}
        for name, docstring in docstrings(ast.parse(module.read_text(encoding="utf-8"))):
            missing = set(re.findall(r"\w+", docstring)) - words
            assert not missing, f"{module.name}: {name}"


def docstrings(node: ast.Module | ast.ClassDef):
    """Name and docstring of all public functions and classes, methods included."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child.name, ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield from docstrings(child)


def test_names_of_everyday_use_are_linked(site):
    import fpdm

    page = (site / "reference" / "fpdm" / "index.html").read_text(encoding="utf-8")
    for name in fpdm.__all__:
        assert re.search(rf'href="[^"]+\.{name}"><code>{name}</code>', page), name


def test_links_and_pictures_lead_to_files(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="images/quickstart.png"' in home and 'href="training.html"' in home
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are absolute: it is shown at any address
            continue
        # What begins with < is in the listing of a program that writes HTML.
        for target in re.findall(r'\b(?:href|src)="([^"#:<]+)[^":]*"', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(site)}: {target}"


def test_nothing_is_asked_of_other_sites(site):
    """No font, script or style sheet comes from elsewhere; links that a reader follows may."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(https?:)?//", page.read_text("utf-8"))
        assert not loaded, page.relative_to(site)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text("utf-8")), sheet.name


def test_named_lines_become_a_section():
    with_sections = runpy.run_path(str(ROOT / "docs" / "_tools" / "docstrings.py"))["with_sections"]
    text = "What it does.\n\nsteps: how many,\n    in words.\ninit: where from;\nand why.\n\nstate: not a parameter.\n"
    assert with_sections(text, {"steps", "init"}).splitlines() == [
        *["What it does.", "", "", "state: not a parameter.", "", "Args:"],
        *["    steps: how many,", "        in words.", "    init: where from;", "        and why."],
    ]
    assert with_sections("Plain; state: no.", {"state"}) == "Plain; state: no."
