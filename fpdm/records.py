"""JSON and YAML files that users meet, read in one way: an error names the file, the field, the value, and what it
should be.

A dataclass says what a file holds: its fields are the keys, its annotations their kinds, and fields without a default
must be there.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from fpdm.files import read_json

Record = TypeVar("Record")
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null", dict: "an "
         "object", list: "a list"}  # fmt: skip
REMEDY = "restore the file, or remove what it belongs to and make it again"
SHOWN = 80  # characters of a wrong value


def read_record(path: Path, kind: type[Record]) -> Record:
    """The file as a dataclass; ValueError for an unknown field too, and for values that the dataclass refuses."""
    return _record(path, read_object(path), kind)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """A JSON file with a list of objects, each as a dataclass."""
    found = read_json(path)
    if not fits(found, list[dict]):
        raise ValueError(f"{path}: holds {shown(found)}: expected a list, each an object; {REMEDY}")
    return [_record(f"{path}: entry {number}", entry, kind) for number, entry in enumerate(found, 1)]


def _record(path: Path | str, found: dict, kind: type[Record]) -> Record:
    _check(path, found, kind)
    for name in found.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"{path}: {name}={shown(found[name])}: no such field is known; {REMEDY}")
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_fields(path: Path, kind: type) -> dict[str, Any]:
    """The same as a dictionary, as it is in the file; fields that the dataclass does not have are not checked."""
    found = read_object(path)
    _check(path, found, kind)
    return found


def _check(path: Path | str, found: dict, kind: type) -> None:
    hints = get_type_hints(kind)
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    check_fields(path, found, {field.name: hints[field.name] for field in fields(kind)}, needed)


def read_arguments(path: Path, function: Callable) -> dict[str, Any]:
    """A file with arguments of a function, of the kinds that its signature says; others are not checked."""
    found = read_object(path)
    check_fields(path, found, get_type_hints(function), [])
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {shown(found)}: expected an object; {REMEDY}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {shown(found)}: expected lines of `name: value`; {REMEDY}")
    return found


def read_sections(path: Path, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A YAML file of sections. sections: those that must be there, with the kinds of fields that must be in them."""
    found = read_yaml(path)
    check_fields(path, found, dict.fromkeys(sections, dict), list(sections))
    for name, kinds in sections.items():
        check_fields(f"{path}: {name}", found[name], kinds, list(kinds))
    return found


def read_lines(path: Path, kinds: dict[str, Any]) -> list[dict[str, Any]]:
    """A file with an object in each line, which must have these fields. A last line that a kill cut short is left out.

    Other fields are not checked: numbers that are not finite are written, too.
    """
    found = []
    for line in lines(path):
        if line.content is not None:
            check_fields(f"{path}: line {line.number}", line.content, kinds, list(kinds))
            found.append(line.content)
        elif not line.cut:
            raise ValueError(damaged_line(path, line.number))
    return found


class Line(NamedTuple):
    """A line of a file. content: None if it holds no object. cut: it has no end, because a kill cut it short."""

    number: int
    text: str
    content: dict[str, Any] | None
    cut: bool


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file with an object in each, without empty ones."""
    whole = path.read_text(errors="replace").split("\n")
    for number, text in enumerate(whole, 1):
        if text.strip():
            try:
                content = json.loads(text)
            except (ValueError, RecursionError):
                content = None
            yield Line(number, text, content if isinstance(content, dict) else None, number == len(whole))


def damaged_line(path: Path, number: int) -> str:
    """The error for a line that holds no object."""
    return f"{path}: line {number} is damaged: expected an object; correct or remove this line"


def check_fields(path: Path | str, found: dict, kinds: dict[str, Any], needed: list[str] | tuple[str, ...]) -> None:
    """ValueError for a field that is missing or of another kind. path: for the message."""
    for name in needed:
        if name not in found:
            raise ValueError(f"{path}: {name} is missing: expected {said(kinds[name])}; {REMEDY}")
    for name in kinds.keys() & found.keys():
        if not fits(found[name], kinds[name]):
            raise ValueError(f"{path}: {name}={shown(found[name])}: expected {said(kinds[name])}; {REMEDY}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value as JSON gives it is of a kind, as annotations write it. Numbers must be finite."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is dict:
        return isinstance(value, dict) and all(fits(part, inner[1]) for part in value.values())
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(part, inner[0]) for part in value)
    return isinstance(value, kind)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is larger than any float
        return False


def said(kind: Any) -> str:
    """What a kind is called in an error."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(said(part) for part in inner)
    if origin in (list, tuple):
        return f"a list, each {said(inner[0])}"
    if origin is dict:
        return f"an object, each value {said(inner[1])}"
    return KINDS.get(kind, getattr(kind, "__name__", str(kind)))


def shown(value: Any) -> str:
    """A value in an error, cut to a length."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
