"""What an experiment is, and what a round of it found."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


class Lost(Exception):
    """A promise of docs/reliability.md that was not kept."""


class Draws(Random):
    """The random numbers of a round. number: the seed of the round, for experiments that go through cases in turn."""

    number = 0

    @classmethod
    def of(cls, experiment: str, number: int) -> "Draws":
        draws = cls(f"{experiment} {number}")
        draws.number = number
        return draws


class Round(NamedTuple):
    """kind: of what was done, a row of the table. outcome: a few words, a column. did: all that was drawn; its numbers
    `killed` (processes killed) and `mapped` (bytes) are told in the report."""

    kind: str
    outcome: str
    did: dict


class Experiment(NamedTuple):
    """about: one line. rounds: of a full campaign; a function of the material where they are known only then.

    play: one round in an empty folder; Lost if a promise is broken. It gets the material
    (fpdm.soak.material.Material), the Draws of the round, and the folder.
    """

    about: str
    rounds: int | Callable[[object], int]
    play: Callable[[object, Draws, Path], Round]
