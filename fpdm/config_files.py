"""Config files: a file may contain `extends: other.yaml`, and every other name in it must be a setting."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml
from jsonargparse import get_loader

EXTENDS = "extends"


class Layer(NamedTuple):
    """One file of a chain, and the settings in it."""

    path: Path
    settings: dict


def layers(path: str | Path) -> list[Layer]:
    """The file at `path` and all files that it extends, the base first: each overrides those before it."""
    found: list[Layer] = []
    following: Path | None = Path(path)
    while following is not None:
        settings = _read(following, found[-1].path if found else None)
        base = settings.pop(EXTENDS, None)
        if base is not None and (not isinstance(base, str) or not base):
            raise ValueError(f"{following}: extends={base!r}: give the path of one file, relative to this one")
        found.append(Layer(following, settings))
        following = None if base is None else following.parent / base
        if following is not None and following.resolve() in {layer.path.resolve() for layer in found}:
            circle = " extends ".join(str(file) for file in [*(layer.path for layer in found), following])
            raise ValueError(f"{circle}: a cycle; remove `extends` from one of them")
    return found[::-1]


def _read(path: Path, child: Path | None) -> dict:
    """The mapping in a file, which `child` extends."""
    asked = f"config {path}" if child is None else f"config {path}, which {child} extends"
    if not path.is_file():
        remedy = "check the path" if child is None else "give the path relative to the file that extends it"
        raise ValueError(f"{asked}: no such file; {remedy}")
    try:
        settings = get_loader("yaml")(path.read_text())  # jsonargparse's, which reads 1e-4 as a number
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{asked}: not YAML ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{asked}: holds no settings; write them as lines of `name: value`, in sections")
    return settings


def check_names(layer: Layer, known: Iterable[str]) -> None:
    """ValueError, with the file, for a name that is not one of the `known` settings ("seed", "optim.lr")."""
    known = set(known)
    sections = {name.partition(".")[0] for name in known if "." in name}
    for key, value in layer.settings.items():
        if key in sections and not isinstance(value, dict):
            raise ValueError(f"{layer.path}: {key}={value!r}: a section; write its settings below it, or remove it")
        names = {f"{key}.{name}": name for name in value} if key in sections else {key: key}
        for full in names.keys() - known:
            near = difflib.get_close_matches(str(full), known | sections, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            where = f"section {key} does" if key in sections else "this command does"
            raise ValueError(f"{layer.path}: {where} not accept option '{names[full]}'{suggestion}")
