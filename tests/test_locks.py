"""One writer at a time: refused while the other lives, free as soon as it has ended, however it ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fpdm import locks
from fpdm.chain.folder import study_folder
from fpdm.locks import only_writer

HOLD = """
import contextlib, fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-S", "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with (
        pytest.raises(ValueError, match=r"another program is writing to this folder; wait until"),
        only_writer(tmp_path),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    begun = time.monotonic()
    with only_writer(tmp_path):
        pass
    assert time.monotonic() - begun < 1


def test_one_that_waits_comes_after_the_other(tmp_path, holder):
    holder.terminate()
    with only_writer(tmp_path, wait=True):
        assert holder.wait(5) == -signal.SIGTERM


def test_a_lock_is_given_back_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError
    with only_writer(tmp_path):
        pass


def test_no_lock_where_the_file_system_has_none(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with only_writer(tmp_path):
        pass


def test_a_study_whose_folder_is_held_is_refused(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with pytest.raises(ValueError, match="another program is writing to this folder"), study_folder(tmp_path, {"a": 1}):
        raise AssertionError
    assert not list(tmp_path.iterdir())


def test_a_study_goes_on_only_with_its_own_settings(tmp_path):
    with study_folder(tmp_path / "new", {"seconds": (1, 2)}):
        pass
    with study_folder(tmp_path / "new", {"seconds": (1, 2)}):
        pass
    with pytest.raises(ValueError, match=r"seconds \[1, 2\] \(now 3\)"), study_folder(tmp_path / "new", {"seconds": 3}):
        raise AssertionError
