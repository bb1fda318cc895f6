"""Say whether this interpreter has what pyproject.toml asks for; exit status 1 and a list if not.

Runs before anything is installed, so it uses the standard library and what pip brings.
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement


def read_project() -> dict:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def requirements(project: dict, extras: list[str]) -> list[Requirement]:
    """What the project needs, and what these extras need besides."""
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [Requirement(line) for line in wanted]


def lacking(project: dict, extras: list[str]) -> list[str]:
    """Requirements of the project, with these extras, that are absent or too old."""
    problems = []
    minimum = project["requires-python"].removeprefix(">=")
    if sys.version_info[:2] < tuple(map(int, minimum.split("."))):
        problems.append(f"Python {project['requires-python']} (this is {sys.version.split()[0]})")
    for requirement in requirements(project, extras):
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(str(requirement))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement} (found {found})")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="", help="comma-separated, as in test,track")
    parser.add_argument("--quiet", action="store_true", help="say nothing, only the exit status")
    args = parser.parse_args()
    problems = lacking(read_project(), [extra for extra in args.extras.split(",") if extra])
    if problems and not args.quiet:
        print("missing: " + ", ".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
