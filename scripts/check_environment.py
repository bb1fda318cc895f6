"""Check whether this interpreter satisfies pyproject.toml; if not, print what is missing, with exit status 1.

Runs before anything is installed, so it uses only the standard library and pip's own packages.
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
    """Requirements of the project and of these extras."""
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [Requirement(line) for line in wanted]


def lacking(project: dict, extras: list[str]) -> list[str]:
    """Requirements of the project and of these extras that are missing or too old."""
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
    parser.add_argument("--extras", default="", help="comma-separated, for example test,track")
    parser.add_argument("--quiet", action="store_true", help="print nothing; only set the exit status")
    args = parser.parse_args()
    problems = lacking(read_project(), [extra for extra in args.extras.split(",") if extra])
    if problems and not args.quiet:
        print("missing: " + ", ".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
