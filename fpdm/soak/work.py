"""What a work is: a command with its result."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fpdm.soak.material import Material


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
    limit: float = 120
    synced: bool = True
    family: bool = False
