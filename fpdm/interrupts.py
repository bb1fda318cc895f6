"""Ctrl-C in a script: whatever it interrupts, the script ends as interrupted."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

LATER = 0.01  # seconds


@contextmanager
def no_interrupt_lost(unless: Callable[[Exception], bool]) -> Iterator[None]:
    """After a Ctrl-C, every error inside is a KeyboardInterrupt, and one that Python ignores comes again.

    A library may turn a KeyboardInterrupt into an error of its own, such as that a file is damaged which it was just
    reading. Python ignores every error in a destructor. unless: errors that stay what they are.
    """
    seen, hook, handler = [], sys.unraisablehook, signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    def ignored(error: "sys.UnraisableHookArgs") -> None:
        if error.exc_type is KeyboardInterrupt:
            threading.Timer(LATER, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(error)

    if handler is not signal.default_int_handler:  # a job in the background ignores Ctrl-C
        yield
        return
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = ignored
    try:
        yield
    except Exception as error:
        if seen and not unless(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)


@contextmanager
def interrupts_at_once() -> Iterator[None]:
    """Ctrl-C inside ends the process at once, without cleaning up: for a long wait outside Python, at whose end alone
    Python could raise KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
