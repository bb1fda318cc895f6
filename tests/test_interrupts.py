"""Ctrl-C at moments at which libraries and Python lose it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fpdm import cli

ROOT = Path(__file__).parents[1]


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

    assert interrupted(main, capsys)


def test_it_comes_while_processes_wait_for_one_that_does_not_start(tmp_path):
    """torch waits outside Python, for half an hour and more."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    (tmp_path / "join.py").write_text(
        "from fpdm.devices import process_state\nprint('joins', flush=True)\nprocess_state()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
                                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
                                "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    words = [sys.executable, str(tmp_path / "join.py")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "joins\n"
            time.sleep(3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == -signal.SIGINT
        finally:
            process.kill()


def test_errors_before_it_stay_what_they_are(capsys):
    def main():
        raise ValueError("budget=1 is too small")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2 and "budget=1" in capsys.readouterr().err
