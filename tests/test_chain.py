"""Scripts that run others: what they say in a file, and what becomes of them when the time is over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fpdm import chain, cli
from fpdm.chain import OutOfTime, Task, equal_time, last_line, run_python, run_script, run_scripts
from fpdm.chain.equal_time import NEVER, ROUNDS, TIMED, WARM, stages_of, steps_for_equal_time
from fpdm.config import ExperimentConfig
from fpdm.models import FixedPointDiT
from fpdm.training.setup import check_solves
from fpdm.training.sjfb import draw_iterations


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


def test_scripts_run_in_their_order(scripts, tmp_path):
    """One at a time, with all threads; what each says goes to its own file."""
    name = scripts("adds.py", "import os, sys; open(sys.argv[1], 'a').write(sys.argv[2]); print('said', sys.argv[2])")
    record = tmp_path / "record"
    run_scripts([Task(name, (record, i), tmp_path / f"{i}.log") for i in range(3)], at_once=1)
    assert record.read_text() == "012"
    assert (tmp_path / "1.log").read_text().splitlines()[1:] == [f"$ python scripts/adds.py {record} 1", "said 1"]


MEETS = """
import os, pathlib, sys, time
mine, other = (pathlib.Path(name) for name in sys.argv[1:])
mine.write_text(os.environ["OMP_NUM_THREADS"])
until = time.monotonic() + 60
while not other.is_file():
    assert time.monotonic() < until, f"{other} was never there"
    time.sleep(0.02)
"""


def test_two_scripts_at_a_time(scripts, tmp_path):
    """The first two wait for each other; the third needs nobody, and they share the threads."""
    name = scripts("meets.py", MEETS)
    one, two, three = (tmp_path / word for word in ("one", "two", "three"))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run_scripts([Task(name, pair, tmp_path / "said.log") for pair in ((one, two), (two, one), (three, one))], 2)
    finally:
        torch.set_num_threads(before)
    assert [path.read_text() for path in (one, two, three)] == ["2", "2", "2"]


WAITS = (
    "import os, pathlib, sys, time\nstarted = pathlib.Path(sys.argv[1])\npartial = started.with_suffix('.partial')\n"
)
WAITS += "partial.write_text(str(os.getpid()))\npartial.rename(started)\ntime.sleep(60)\n"


def test_a_script_that_fails_ends_the_others(scripts, tmp_path):
    pid, log = tmp_path / "pid", tmp_path / "fails.log"
    waits = scripts("waits.py", WAITS)
    fails = scripts("fails.py", (
        "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).is_file():\n    time.sleep(0.02)\n"
        "sys.exit('the reason')\n"
    ))  # fmt: skip
    begun = time.monotonic()
    never = Task(waits, (tmp_path / "never",), tmp_path / "never.log")
    with pytest.raises(ValueError, match=r"scripts/fails\.py failed with exit status 1; the reason \(full output in"):
        run_scripts([Task(waits, (pid,), tmp_path / "waits.log"), Task(fails, (pid,), log), never], at_once=2)
    assert time.monotonic() - begun < 40 and not (tmp_path / "never").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_scripts_end_at_the_deadline(scripts, tmp_path):
    waits = scripts("waits.py", WAITS)
    begun = time.monotonic()
    tasks = [Task(waits, (tmp_path / f"{i}",), tmp_path / f"{i}.log") for i in range(3)]
    with pytest.raises(OutOfTime, match="the time limit is reached; the same command resumes"):
        run_scripts(tasks, at_once=2, deadline=begun + 5)
    assert time.monotonic() - begun < 40
    for i in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{i}").read_text()), 0)
    assert not (tmp_path / "2").exists()


def test_steps_of_equal_time_are_from_the_median_rate(tmp_path, monkeypatch):
    """Images per second of three rounds, one of them on a machine that is busy; a batch of 4."""
    rates = {"fast": [400, 40, 480], "slow": [100, 110, 10]}
    calls = []

    def run(tasks, at_once, deadline, beside):
        calls.append((at_once, deadline))
        for task, name in zip(tasks, ("fast", "slow"), strict=True):
            words = [str(word) for word in task.arguments]
            assert task.script == "train.py" and words[:2] == ["--model.name", name]
            options = dict(zip(words[::2], words[1::2], strict=True))
            folder = Path(options["--run.results"], f"000-{options['--run.name']}")
            folder.mkdir()
            (folder / "config.yaml").write_text("optim: {batch_size: 4}\n")
            rate = rates[name][len(calls) - 1]
            lines = [(WARM, 1e-3), (2 * WARM, rate / 0.5), (3 * WARM, rate / 1.5)]  # their mean time is that of `rate`
            text = [json.dumps({"step": step, "images_per_s": value}) for step, value in lines]
            (folder / "log.jsonl").write_text("\n".join(text) + "\n")

    monkeypatch.setattr(equal_time, "run_scripts", run)
    path, arguments = tmp_path / "steps.json", {name: ["--model.name", name] for name in rates}
    steps = steps_for_equal_time(path, 10.05, arguments, deadline=7.0, at_once=2)
    assert steps == {"fast": 1005, "slow": 251} and calls == [(2, 7.0)] * ROUNDS
    kept = json.loads((tmp_path / "steps-rates.json").read_text())
    assert kept["slow"] == pytest.approx([25, 27.5, 2.5])
    assert steps_for_equal_time(path, 99.0, arguments) == steps and len(calls) == ROUNDS  # measured once
    path.unlink()
    calls.clear()
    assert steps_for_equal_time(path, 0.001, arguments) == {"fast": 1, "slow": 1}


def test_stages_begin_where_steps_change_their_cost():
    assert stages_of([]) == stages_of(["--sjfb.consistency", "0.1", "--sjfb.consistency_from", "0"]) == [(1.0, ())]
    words = ["--sjfb.grow", "[[0,1],[0.5,2]]", "--sjfb.consistency", "0.1", "--sjfb.consistency_from", "0.75"]
    first, second, third = stages_of(words)
    assert (first.share, second.share, third.share) == (0.5, 0.25, 0.25)
    assert first.arguments == ("--sjfb.grow", f"[[0,1],[{NEVER},2]]", "--sjfb.consistency_from", NEVER)
    assert third.arguments == ("--sjfb.grow", "[[0,2]]", "--sjfb.consistency_from", 0)
    assert NEVER > 1 - 1 / (WARM + TIMED)  # the share before the last step that is measured


@pytest.mark.parametrize("more", [("--sjfb.supervise", "random"), ("--model.early_head", 2)])
def test_every_stage_is_one_that_trains(more):
    """The first ones have a single update; what needs another one, later, is allowed."""
    words = ["--sjfb.variant", "multi-step", "--sjfb.no_grad", 0, "--sjfb.grad", 4]
    words += ["--sjfb.grow", "[[0,1],[0.4,2],[0.65,4]]", *more]
    found, parser = stages_of(words), cli.make_parser(ExperimentConfig, "")
    assert [stage.share for stage in found] == pytest.approx([0.4, 0.25, 0.35])
    for stage, most in zip(found, (1, 2, 4), strict=True):
        config = cli.parse(ExperimentConfig, parser, [str(word) for word in (*words, *stage.arguments)])
        network = FixedPointDiT(4, 2, 3, 32, 2, **config.model.overrides() | {"num_classes": 3})
        check_solves(config, network, 8)
        drawn = [draw_iterations(config.sjfb, 0, step, step / (WARM + TIMED)) for step in range(WARM + TIMED)]
        assert set(drawn) == {(0, most)}


@pytest.fixture
def machine(monkeypatch):
    """In place of training: logs of two models that make 10 and 20 steps a second, times the machine's speed."""
    speeds = []

    def run_scripts(tasks, at_once, deadline, beside):
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


def test_every_stage_of_a_growing_training_is_measured(tmp_path, monkeypatch):
    """40 steps a second for 40 % of the steps, 20 for 25 % and 10 for 35 %: 0.0575 s a step."""
    rates = {f"[[0,1],[{NEVER},4]]": 40, f"[[0,2],[{NEVER},4]]": 20, "[[0,4]]": 10, "": 5}

    def run(tasks, at_once, deadline, beside):
        assert len(tasks) == 4
        for task in tasks:
            words = list(map(str, task.arguments))
            grows = [words[i + 1] for i, word in enumerate(words) if word == "--sjfb.grow"]
            folder = Path(words[words.index("--run.results") + 1], f"000-{words[words.index('--run.name') + 1]}")
            folder.mkdir()
            (folder / "config.yaml").write_text("optim: {batch_size: 4}")
            rate = rates[grows[-1] if grows else ""]
            lines = [{"step": 30, "images_per_s": 1}, {"step": 60, "images_per_s": 4 * rate}]
            (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(equal_time, "run_scripts", run)
    arguments = {"grown": ["--sjfb.grow", "[[0,1],[0.4,2],[0.65,4]]"], "plain": []}
    assert steps_for_equal_time(tmp_path / "a.json", 57.5, arguments) == {"grown": 1000, "plain": 287}


def test_the_load_is_constant_until_the_last_task_is_done(scripts, tmp_path):
    """Of three tasks, two at a time, the third has others beside it all the time; these are stopped with it."""
    name = scripts("sees.py", (
        "import pathlib, sys, time\nfolder, mine, seconds = pathlib.Path(sys.argv[1]), *sys.argv[2:]\n"
        "(folder / mine).touch()\nseen, until = [], time.monotonic() + float(seconds)\n"
        "while time.monotonic() < until:\n    seen.append(len(list(folder.glob('*'))))\n    time.sleep(0.02)\n"
        "(folder / mine).unlink()\nprint('seen', *seen[len(seen) // 2:])\n"
    ))  # fmt: skip
    folder = tmp_path / "now"
    folder.mkdir()
    task = lambda mine, seconds: Task(name, (folder, mine, seconds), tmp_path / f"{mine}.log")  # noqa: E731
    beside = (task(f"beside-{i}", 60) for i in range(9))
    begun = time.monotonic()
    assert run_scripts([task("a", 0.5), task("b", 0.5), task("c", 3)], 2, None, beside) == []
    assert time.monotonic() - begun < 40
    seen = last_line(tmp_path / "c.log").split()[1:]
    assert set(seen) == {"2"} and (tmp_path / "beside-0.log").exists() and not (tmp_path / "beside-1.log").exists()


def test_a_status_that_is_borne_does_not_stop_the_others(scripts, tmp_path):
    ends = scripts("ends.py", "import sys; open(sys.argv[1], 'w'); sys.exit(int(sys.argv[2]))")
    tasks = [Task(ends, (tmp_path / f"{i}", status), tmp_path / f"{i}.log", bears=4)
             for i, status in enumerate((4, 0, 4))]  # fmt: skip
    assert run_scripts(tasks, 1) == [tasks[0], tasks[2]] and (tmp_path / "2").exists()
    with pytest.raises(ValueError, match="exit status 3"):
        run_scripts([tasks[0]._replace(arguments=(tmp_path / "x", 3))], 1)
    with pytest.raises(ValueError, match="exit status 4"):
        run_scripts([tasks[0]._replace(bears=0)], 1)


def test_measured_trainings_have_the_same_ones_beside_them():
    tasks = [Task("train.py", ("--a", 1, "--run.name", name), Path("/x", f"{name}.log")) for name in ("one", "two")]
    again = [next(beside) for beside in [equal_time._again(tasks)] for _ in range(3)]
    assert [task.arguments[-1] for task in again] == ["one-again-0", "two-again-1", "one-again-2"]
    assert again[2].arguments[:-1] == tasks[0].arguments[:-1] and len({task.log for task in again}) == 3
