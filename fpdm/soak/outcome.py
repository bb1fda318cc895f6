"""What an experiment is, and what a round of it found."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


class Lost(Exception):
    """A promise of docs/reliability.md that was not kept."""


class Round(NamedTuple):
    """kind: of what was done, a row of the table. outcome: a few words, a column. did: all that was drawn."""

    kind: str
    outcome: str
    did: dict


class Experiment(NamedTuple):
    """about: one line. rounds: of a full campaign. play: one round in an empty folder; Lost if a promise is broken.

    play gets the material (fpdm.soak.works.Material), random numbers made of the round's seed, and the folder.
    """

    about: str
    rounds: int
    play: Callable[[object, Random, Path], Round]
