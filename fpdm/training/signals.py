"""Asked to stop: SIGTERM, and SIGUSR1, end training after the step in hand or the one after it, with a checkpoint."""

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they take a machine away


class StopRequest:
    """While entered, notes these signals instead of dying of them.

    Only a program's main thread can receive signals; in another one this does nothing.
    """

    def __init__(self):
        self.signal: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
