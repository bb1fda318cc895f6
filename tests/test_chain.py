"""Scripts that run others: what they say in a file, and what becomes of them when the time is over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fpdm import chain
from fpdm.chain import OutOfTime, equal_time, last_line, run_python, run_script
from fpdm.chain.equal_time import steps_for_equal_time


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of scripts in place of the project's; the environment's fpdm is imported all the same."""
    (tmp_path / "scripts").mkdir()
    monkeypatch.setattr(chain, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def write(name: str, text: str) -> str:
        (tmp_path / "scripts" / name).write_text(text)
        return name

    return write


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.is_file():
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.05)


def test_what_a_script_says_goes_to_a_file(scripts, tmp_path):
    log = tmp_path / "said.log"
    run_script(scripts("says.py", "import sys; print('one'); print('two', file=sys.stderr)"), log=log)
    with pytest.raises(ValueError, match=r"exit status 3; the reason \(full output in .*said.log\)"):
        run_script(scripts("fails.py", "import sys; print('the reason\\n'); sys.exit(3)"), log=log)
    said = log.read_text().split()
    assert said[:3] == ["$", "python", "scripts/says.py"] and sorted(said[3:5]) == ["one", "two"]
    assert last_line(log) == "the reason"


def test_a_script_is_stopped_at_the_deadline(scripts):
    begun = time.monotonic()
    with pytest.raises(OutOfTime, match=r"scripts/sleeps.py was stopped"):
        run_script(scripts("sleeps.py", "import time; time.sleep(60)"), deadline=begun + 0.5)
    assert time.monotonic() - begun < 30


def test_one_that_does_not_end_is_killed(tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    begun = time.monotonic()
    assert run_python(["-c", deaf], begun + 2, None, signal.SIGINT, patience=1) is None
    assert time.monotonic() - begun < 30


def test_stopping_a_script_stops_what_it_runs(scripts, tmp_path):
    """Or a training run would keep the GPU busy that the next measurement needs."""
    pid = tmp_path / "pid"
    inner = scripts("inner.py", (
        "import os, pathlib, time\npath = pathlib.Path('pid.partial')\npath.write_text(str(os.getpid()))\n"
        f"path.rename({str(pid)!r})\ntime.sleep(60)\n"
    ))  # fmt: skip
    outer = scripts("outer.py", (
        "import pathlib\nfrom fpdm import chain\nchain.ROOT = pathlib.Path(__file__).parents[1]\n"
        f"chain.end_on_sigterm()\nchain.run_script({inner!r})\n"
    ))  # fmt: skip
    process = subprocess.Popen([sys.executable, str(tmp_path / "scripts" / outer)], cwd=tmp_path)
    wait_for(pid)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_background_job_can_interrupt_what_it_runs():
    """The shell lets jobs in the background ignore SIGINT, which children inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = time.monotonic()
        assert run_python(["-c", "import time; time.sleep(60)"], started + 2, stop=signal.SIGINT, patience=40) is None
        assert time.monotonic() - started < 30  # interrupted, not killed after its patience
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def machine(monkeypatch):
    """In place of training: logs of two models that make 10 and 20 steps a second, times the machine's speed."""
    speeds = []

    def run_scripts(tasks, at_once, deadline):
        speed = speeds.pop(0)
        for rate, task in zip((10, 20), tasks, strict=True):
            words = list(map(str, task.arguments))
            run = Path(words[words.index("--run.results") + 1], f"000-{words[words.index('--run.name') + 1]}")
            run.mkdir()
            (run / "config.yaml").write_text("optim: {batch_size: 4}")
            lines = [{"step": 30, "images_per_s": 1}, {"step": 60, "images_per_s": 4 * rate * speed}]
            (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(equal_time, "run_scripts", run_scripts)
    return speeds


def test_a_slow_moment_does_not_change_the_steps(machine, tmp_path):
    machine += [1, 0.1, 1]
    steps = steps_for_equal_time(tmp_path / "a.json", 6, {"a": [], "b": []})
    assert steps == {"a": 60, "b": 120} == steps_for_equal_time(tmp_path / "a.json", 6, {"a": [], "b": []})
    machine += [0.5, 0.5, 0.5]
    assert steps_for_equal_time(tmp_path / "b.json", 6, {"a": [], "b": []}, known=("a", 60))["b"] == 120
