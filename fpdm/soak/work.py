"""What a work is: a command with its result."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fpdm.soak.material import Material

LIMIT = 300  # seconds of a command of a few seconds, on a machine with much other work


class Work(NamedTuple):
    """words: of the command that writes into a folder. result: what must be the same after any interruption.

    intact: Lost if something in the folder of an interrupted command passes for whole and is not. processes: of the
    command. share: of all rounds, relative to other works. limit: seconds after which it hangs. synced: whether
    `intact` holds after a power failure too, before the command has run again. family: whether it starts commands in
    its turn, and they others.
    """

    words: Callable[[Material, Path], list]
    result: Callable[[Path], dict]
    intact: Callable[[Path], None]
    processes: int = 1
    share: float = 1.0
    limit: float = LIMIT
    synced: bool = True
    family: bool = False

    @property
    def is_study(self) -> bool:
        """Whether it lasts a minute and more."""
        return self.limit > LIMIT
