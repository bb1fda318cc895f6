"""Stop requests: SIGTERM, SIGUSR1 and Ctrl-C end training with a checkpoint, after the current step or the next one.
A second Ctrl-C ends it at once."""

import os
import signal
import threading
from types import FrameType

# Schedulers send SIGTERM or SIGUSR1 (which Windows does not have) before they take a machine away.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
TOLD = b"\nCtrl-C: training stops with a checkpoint after this step"
AGAIN = b"; press it again to end at once, without one"  # torchrun would send SIGTERM the second time


class StopRequest:
    """A context in which these signals are recorded instead of ending the process.

    Only a program's main thread can receive signals; in other threads this does nothing.
    say: whether to answer Ctrl-C on the console; only one of several processes should.
    """

    def __init__(self, say: bool = True):
        self.signal: str | None = None
        self.say = say
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
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one raises KeyboardInterrupt
            if self.say:
                # A handler must not touch Python's own streams, which may be in use.
                os.write(2, TOLD + (b"" if "TORCHELASTIC_RUN_ID" in os.environ else AGAIN) + b"\n")
