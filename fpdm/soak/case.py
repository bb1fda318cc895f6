"""A case of bad input, and how kinds of cases are made."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from fpdm.soak.material import Material


class Case(NamedTuple):
    """words: of the command. did: what was changed. names: of which the error must tell one. work: what is done instead
    of a command."""

    words: list
    did: str
    names: tuple[str, ...]
    work: Callable[[], None] | None = None


Kind = Callable[[Material, Random, Path], Case]
Words = Callable[[Path, Material, Path], list]  # of a file or folder, the material, and the folder of the round
Way = Callable[[Path, Random], str]  # changes or makes a file; returns what it did


def of_file(path_in: str, source: str, words: Words, way: Way) -> Kind:
    """Cases in which one file of a copy is changed. path_in: below the copied folder `source` of the material."""

    def kind(material: Material, draw: Random, folder: Path) -> Case:
        copied = folder / source
        shutil.copytree(getattr(material, source), copied, symlinks=True)
        path = draw.choice(sorted(copied.glob(path_in)))
        did = way(path, draw)
        return Case(words(copied, material, folder), f"{path.relative_to(copied)}: {did}", names_of(path))

    return kind


def made(name: str, words: Words, way: Way) -> Kind:
    """Cases in which a file is made from nothing."""

    def kind(material: Material, draw: Random, folder: Path) -> Case:
        path = folder / name
        did = way(path, draw)
        return Case(words(path, material, folder), did, names_of(path))

    return kind


def names_of(path: Path) -> tuple[str, ...]:
    """What tells a reader of an error which file it is: its name, or the folder in which it lies."""
    return path.name, str(path.parent), f"{path.parent}/"


def loaded(load: Callable[[Path], object], path_in: str, source: str, way: Way) -> Kind:
    """Cases for a reader that no command has: what a user's own program would call."""
    from fpdm import cli

    base = of_file(path_in, source, lambda path, material, folder: [], way)

    def kind(material: Material, draw: Random, folder: Path) -> Case:
        return base(material, draw, folder)._replace(work=lambda: cli.run(lambda: load(folder / source)))

    return kind
