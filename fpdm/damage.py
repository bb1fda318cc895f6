"""What an error while reading a file means: that the file is damaged, or that there is no memory left to read it."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# torch has no class for this error on CPUs, and libraries wrap that of the system.
NO_MEMORY = re.compile(r"out of memory|not enough memory|can(not|'t) allocate memory", re.IGNORECASE)


@contextmanager
def damaged(path: str | Path, says: str, remedy: str | None = None) -> Iterator[None]:
    """Any error inside is a ValueError, `says (the error); remedy`: damaged bytes can make unpicklers raise anything.

    MemoryError with the path if there is no memory left, which says nothing about the file.
    """
    try:
        yield
    except Exception as error:
        check_memory(path, error)
        raise ValueError(f"{says} ({reason(error)}){f'; {remedy}' if remedy else ''}") from error


def reason(error: BaseException) -> str:
    """An error's message as one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's is a page, which says how to run the file's code
        return "it holds something other than tensors and plain containers"
    return " ".join(str(error).split()) or type(error).__name__


def check_memory(path: str | Path, error: BaseException) -> None:
    """MemoryError, with the path, if an error while reading a file was for want of memory."""
    if is_out_of_memory(error):
        raise MemoryError(f"{path} could not be read") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that there is no memory left."""
    while error is not None:
        said = isinstance(error, (RuntimeError, OSError)) and NO_MEMORY.search(str(error))
        if said or isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
