"""Print the oldest versions that pyproject.toml allows as `name==version` lines, for `pip install -r`.

Runs before anything is installed, like check_environment.py.
"""

import argparse
import sys

from check_environment import read_project, requirements


def lower_bounds(project: dict, extras: list[str]) -> list[str]:
    """A pin for each requirement of the project and of these extras; ValueError if one has no lower bound."""
    pins = {}
    for requirement in requirements(project, extras):
        bounds = [specifier for specifier in requirement.specifier if specifier.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement} has no lower bound; write {requirement.name}>=version")
        chosen = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pins[requirement.name] = f"{requirement.name}{chosen}=={bounds[0].version}"
    return list(pins.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="test", help="comma-separated, for example test,track")
    args = parser.parse_args()
    print("\n".join(lower_bounds(read_project(), [extra for extra in args.extras.split(",") if extra])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
