"""Pages of the site that are no files in docs/: those of the top folder, and one for each module of the package.

A hook of mkdocs (mkdocs.yml). Modules are read, never imported.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = "fpdm"
TOP_PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
LINK = re.compile(r"""(\]\(|\b(?:src|href)=")(?![a-z]+:|#|/)([^)\s"#]+)""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference to the navigation."""
    config.nav.append({"Reference": navigation(ROOT / PACKAGE)})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and every file of the repository that a page links to."""
    for path, uri in TOP_PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    linked = {target for page in files.documentation_pages() for target in outside_links(page)}
    for target in sorted(linked):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if is_public(path):
            files.append(File.generated(config, page_uri(path), content=reference_page(path)))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    if page.file.abs_src_path is None:
        return markdown
    folder = repository_path(page.file).parent
    start = os.path.dirname(page.file.src_uri) or "."

    def in_site(found: re.Match) -> str:
        return found[1] + os.path.relpath(site_uri(resolve(folder, found[2])), start)

    return LINK.sub(in_site, markdown)


def outside_links(page: File) -> set[str]:
    """Files of the repository that a page links to and that have no place in the site yet."""
    folder = repository_path(page).parent
    targets = {resolve(folder, target) for _, target in LINK.findall(page.content_string)}
    return {t for t in targets if not t.startswith("docs/") and t not in TOP_PAGES and (ROOT / t).is_file()}


def repository_path(file: File) -> PurePosixPath:
    """Where a page lies in the repository, whatever its place in the site."""
    return PurePosixPath(Path(file.abs_src_path).relative_to(ROOT).as_posix())


def resolve(folder: PurePosixPath, target: str) -> str:
    """Path in the repository of a link's target, for a page in `folder`."""
    return os.path.normpath(folder / target)


def site_uri(path: str) -> str:
    """Place in the site of a file of the repository."""
    return TOP_PAGES.get(path, path.removeprefix("docs/"))


def is_public(path: Path) -> bool:
    """Whether no part of a module's name begins with an underscore (__init__.py is its package)."""
    return not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(ROOT).parts)


def module_name(path: Path) -> str:
    """fpdm/models/dit.py -> fpdm.models.dit"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def page_uri(path: Path) -> str:
    """fpdm/models/dit.py -> reference/fpdm/models/dit.md"""
    return f"reference/{path.relative_to(ROOT).with_suffix('.md').as_posix()}".replace("__init__.md", "index.md")


def navigation(package: Path) -> list:
    """The package's page, then its modules and packages by name."""
    entries: list = [page_uri(package / "__init__.py")]
    for child in children(package):
        if child.name == "__init__.py":
            entries.append({child.parent.name: navigation(child.parent)})
        else:
            entries.append({child.stem: page_uri(child)})
    return entries


def children(package: Path) -> list[Path]:
    """Files of a package's public modules and packages (their __init__.py), by name."""
    modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    return sorted(filter(is_public, [*modules, *package.glob("*/__init__.py")]), key=module_name)


def reference_page(path: Path) -> str:
    """Markdown of a module's page; a package's lists what it exports and what it holds."""
    name = module_name(path)
    if path.name != "__init__.py":
        return f"::: {name}\n"
    lines = [f"::: {name}", "    options:", "      members: false", ""]
    exported = sorted(exports(path).items())
    if exported:
        lines += [f"## Names to import from {name}", ""]
        lines += [entry(short, f"{home}.{short}", summary(home, short)) for short, home in exported] + [""]
    modules = map(module_name, children(path.parent))
    lines += ["## Modules", "", *(entry(module, module, summary(module)) for module in modules)]
    return "\n".join(lines) + "\n"


def entry(label: str, target: str, text: str) -> str:
    """Line of a list: a link to an object of the package, and what it is."""
    return f"- [`{label}`][{target}]" + (f": {text}" if text else "")


def exports(path: Path) -> dict[str, str]:
    """Name -> the module that defines it, for all that a package's __init__.py offers.

    The top package imports its names when they are asked for: a dict _HOMES says from where.
    """
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE}."):
            found |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["_HOMES"]:
            found |= ast.literal_eval(node.value)
    return {name: definer(name, home) for name, home in found.items()}


def definer(name: str, module: str) -> str:
    """The module that defines a name which `module` offers."""
    package = ROOT.joinpath(*module.split("."), "__init__.py")
    return exports(package).get(name, module) if package.is_file() else module


def summary(module: str, name: str | None = None) -> str:
    """First sentence of the docstring of a module, or of a class or function in it; empty without one."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    node = ast.parse(path.read_text(encoding="utf-8"))
    if name is not None:
        node = next((child for child in node.body if getattr(child, "name", None) == name), None)
    text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
    return " ".join((text or "").split("\n\n")[0].split())
