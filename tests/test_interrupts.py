"""Ctrl-C at moments at which libraries and Python lose it."""

import signal
import sys
import time

import pytest

from fpdm import cli


def interrupted(main, capsys) -> bool:
    """Whether the command ends as interrupted, and leaves no handler behind."""
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert signal.getsignal(signal.SIGINT) is handler and sys.unraisablehook is hook
    return ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("raised", [RuntimeError("no message"), OSError("a file is damaged"), KeyboardInterrupt()])
def test_a_library_turns_it_into_an_error_of_its_own(capsys, raised):
    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise raised from None

    assert interrupted(main, capsys)


def test_it_comes_amid_a_destructor(capsys):
    """Python ignores an error there: the command would go on to its end."""

    class Bar:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def main():
        Bar()
        time.sleep(30)

    started = time.monotonic()
    assert interrupted(main, capsys)
    assert time.monotonic() - started < 20


def test_errors_before_it_stay_what_they_are(capsys):
    def main():
        raise ValueError("budget=1 is too small")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2 and "budget=1" in capsys.readouterr().err
