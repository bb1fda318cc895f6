"""The checks of the campaign find what they look for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fpdm.soak.bad_input import judged
from fpdm.soak.case import Case
from fpdm.soak.children import Ended, run, start
from fpdm.soak.clock import jump
from fpdm.soak.ends import told
from fpdm.soak.kills import HighWater
from fpdm.soak.long_runs import Look, _judged, _size_of, slope_of
from fpdm.soak.moments import AIM, Aim, pass_on, take_aim
from fpdm.soak.outcome import Lost
from fpdm.soak.reads import Reads
from fpdm.soak.results import logged, lost_between, saved, steps_again
from fpdm.soak.signalled import _of_training
from fpdm.soak.works import WORKS

ROOT = Path(__file__).parents[2]


def checkpoint(folder: Path, step: int) -> None:
    """What passes for a checkpoint of a run."""
    checkpoints = folder / "runs" / "000-run" / "checkpoints"
    (checkpoints / f"{step:07d}" / "ema").mkdir(parents=True)
    (checkpoints / "latest").unlink(missing_ok=True)
    (checkpoints / "latest").symlink_to(f"{step:07d}")


def test_lost_checkpoints_files_and_scores(tmp_path):
    checkpoint(tmp_path, 4)
    (tmp_path / "shard-00000.bin").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.json").write_text('{"a": [1, 2]}')
    before = saved(tmp_path)
    assert before["step of runs/000-run"] == 4 and len(before) == 3
    checkpoint(tmp_path, 6)
    assert not lost_between(before, saved(tmp_path))
    later = saved(tmp_path)
    (tmp_path / "runs" / "000-run" / "checkpoints" / "latest").unlink()
    (tmp_path / "new").write_text("a")
    os.replace(tmp_path / "new", tmp_path / "shard-00000.bin")  # the same content, made again
    (tmp_path / "out" / "scores.json").write_text('{"a": [1, 3]}')
    assert len(lost_between(later, saved(tmp_path))) == 3


def test_what_was_saved_at_any_moment_must_be_there_after_the_kill(tmp_path):
    folder = tmp_path / "round"
    checkpoint(folder, 4)
    high = HighWater(folder, 0, {})
    high.note(0)()
    assert not high.lost()
    (folder / "runs" / "000-run" / "checkpoints" / "latest").unlink()
    assert "step of runs/000-run: 4, now gone" in high.lost()


def test_steps_that_are_taken_again(tmp_path):
    checkpoint(tmp_path, 4)
    log = tmp_path / "runs" / "000-run" / "log.txt"
    log.write_text("step       4/8  loss\n")
    before, lengths = saved(tmp_path), logged(tmp_path)
    with log.open("a") as file:
        file.write("step       5/8  loss\n")
    assert not steps_again(before, lengths)
    with log.open("a") as file:
        file.write("step       1/8  loss\n")
    assert steps_again(before, lengths) == ["000-run: step 1 again"]


@pytest.mark.parametrize("act", ["before", "fill"])
def test_processes_that_a_command_starts_take_its_aim(tmp_path, monkeypatch, act):
    """The second operation of the command, in a process that it starts."""
    (tmp_path / "out").mkdir()
    (tmp_path / "counted").write_text("w")  # one by the command itself
    aim = Aim(str(tmp_path / "out"), str(tmp_path / "counted"), 1, "before" if act == "before" else "", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(AIM, "")
    pass_on(aim if act == "before" else aim._replace(at=None), tmp_path / "site")
    words = [os.path.realpath(sys.executable), "-c", "open('out/a', 'w'); open('out/b', 'w')"]
    done = subprocess.run(words, cwd=tmp_path, start_new_session=True)
    assert done.returncode == (-signal.SIGKILL if act == "before" else 0)
    assert (tmp_path / "out" / "b").exists() == (act != "before")
    assert (tmp_path / "counted").read_text() == ("ww" if act == "before" else "www")


@pytest.mark.parametrize("again", [False, True])
def test_a_torn_write_keeps_what_was_synced(tmp_path, again):
    """The third sync of a log fails: of its three bytes since the second one is left. So it is if a process goes on
    with a file that is there."""
    folder = tmp_path / "out"
    folder.mkdir()
    if again:
        (folder / "log").write_text("before")
    syncs = [("aa", 1), ("bb", 3), ("ccc", 5)]  # what is written, and the number of the operation of its sync

    def work() -> None:
        with (folder / "log").open("a") as file:
            for text, _ in syncs:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    aim = Aim(str(folder), str(tmp_path / "counted"), syncs[-1][1], "torn")
    run(work, tmp_path / "said.txt", before=lambda rank: take_aim(aim))
    assert (folder / "log").read_text() == "before" * again + "aabbc"


def test_a_look_at_a_folder_that_changes(tmp_path):
    """Files and folders come and go at a name while their sizes are added up."""
    (tmp_path / "kept").write_text("12345")
    (tmp_path / "log.txt").write_text("grows by design")

    def work() -> None:
        while True:
            (tmp_path / "a" / "b").mkdir(parents=True)
            (tmp_path / "a" / "b" / "c").touch()
            (tmp_path / "a").rename(tmp_path / "d")
            shutil.rmtree(tmp_path / "d")

    children = start(work, tmp_path.with_suffix(".said"))
    try:
        assert {_size_of(tmp_path) for _ in range(2000)} == {5}
    finally:
        children.kill()
        children.wait(10)


def test_a_read_that_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")

    def work() -> None:
        path.read_text()
        try:
            path.read_bytes()
        except OSError as error:
            os.write(1, str(error).encode())

    for way, said in (("fails at the opening", "Input/output error"), ("fails at a read", "Input/output error"),
                      ("has vanished", "No such file")):  # fmt: skip
        reads = Reads((tmp_path,), tmp_path / "reads", 1, way)
        ended = run(work, tmp_path / "said.txt", before=reads.watch)
        assert said in ended.said and reads.failed.read_text() == str(path)
        assert path.exists() == (way != "has vanished")


def test_a_clock_that_jumps(tmp_path):
    def work() -> None:
        import datetime

        os.write(1, f"{time.time() - before} {datetime.datetime.now().timestamp() - before}".encode())

    before = time.time()
    ended = run(work, tmp_path / "said.txt", before=lambda rank: jump(-1e6, 0))
    assert [float(word) for word in ended.said.split()] == pytest.approx([-1e6, -1e6], abs=60)


def test_a_process_that_is_left_behind_is_seen(tmp_path):
    children = start(lambda: subprocess.Popen(["sleep", "60"]), tmp_path / "said.txt")
    while not children.look():
        time.sleep(0.01)
    assert len(children.left()) == 1
    children.wait(1)  # ends it
    deadline = time.monotonic() + 5
    while children.left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not children.left()


def looks(disk: float = 0.0, slower: float = 0.0, memory: float = 0.0) -> list[Look]:
    """Of a run of a hundred seconds, with what grows over it, as a share."""
    shares = np.linspace(0.2, 1, 50)
    return [Look(x, 1e9 * (1 + memory * x), 9, 4, 100 * (x + slower * x**2), 1e8 * (1 + disk * x)) for x in shares]


def test_long_runs_are_judged():
    assert _judged(looks())["seconds"]["last third to first"] == pytest.approx(1)
    for grown, said in (("disk", "disk grows"), ("memory", "memory grows"), ("slower", "a step costs")):
        with pytest.raises(Lost, match=said):
            _judged(looks(**{grown: 2.0}))


def test_slopes():
    """The error is that of a textbook: for residuals e, sqrt(e.e / (n - 2) / sum of squares of x)."""
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert slope_of(x, 2 * x + 1) == (pytest.approx(2), pytest.approx(0))
    slope, error = slope_of(x, np.array([0.0, 1.0, 0.0, 1.0]))
    assert slope == pytest.approx(0.2) and error == pytest.approx(np.sqrt(0.8 / 2 / 5))


def test_training_that_says_it_saved_must_have(tmp_path):
    checkpoint(tmp_path, 4)
    run_folder = tmp_path / "runs" / "000-run"
    (run_folder / "log.jsonl").write_text("{}\n" * 4)
    said = "stopped by SIGTERM after step {} of 8, checkpoint written; resume with --resume " + str(run_folder)
    assert _of_training(Ended([0], said.format(4), 1.0), tmp_path, signal.SIGTERM) == "stopped with a checkpoint"
    for ended in (Ended([0], said.format(5), 1.0), Ended([-15], said.format(4), 1.0), Ended([-15], "", 1.0)):
        with pytest.raises(Lost):
            _of_training(ended, tmp_path, signal.SIGTERM)


@pytest.mark.parametrize("said", ["error: x is wrong\nmore\n", "error: a.json\nerror: a.json\n", "error: something\n"])
def test_a_refusal_is_one_last_line_that_names_the_file(said):
    case = Case([], "", ("a.json",))
    assert judged(Ended([2], "hello\nerror: a.json is damaged\n", 1.0), case) == "refused in one line"
    with pytest.raises(Lost):
        judged(Ended([2], said, 1.0), case)


@pytest.mark.parametrize(("statuses", "said"), [([3], "error: a\n"), ([2], "a\n"), ([2, 3], "error: a\n")])
def test_how_a_command_may_end(statuses, said):
    work = WORKS["sample"]
    assert told(Ended([2, 3], "error: a\nerror: b\n", 1.0), work) == "refused in one line"
    with pytest.raises(Lost):
        told(Ended(statuses, said, 1.0), work)
