"""scripts/on_gpu.py: rehearsed at tiny size, stopped, resumed; what fails, what hangs, what is brought home."""

import json
import runpy
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from fpdm import chain, cli
from fpdm.benchmarks import steps
from fpdm.benchmarks.counted_memory import LARGEST
from fpdm.chain import OutOfTime
from fpdm.on_gpu import gpu_tests, parts, summary, visit
from fpdm.on_gpu.goals import goals, remarks
from fpdm.on_gpu.parts import Outcome, Part, Visit

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
NAMES = ["tests", "updates", "cores", "steps", "sampling", "published", "memory", "graphs", "profiles", "rates"]


def on_gpu(out: Path, *words) -> None:
    """The script in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["on_gpu.py", "--out", str(out), *map(str, words)])
        runpy.run_path(str(ROOT / "scripts" / "on_gpu.py"), run_name="__main__")


@pytest.fixture
def here(monkeypatch):
    """Scripts run in this process, which is sooner; those that ran. No GPU, even where there is one."""
    ran = []

    def run_here(script, *words, deadline=None, log=None, patience=None):
        ran.append(script)
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, words)])
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of other processes
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(chain, "end_on_sigterm", lambda: None)  # of the process that runs all tests
    monkeypatch.setattr(parts, "run_script", run_here)
    monkeypatch.setattr(steps, "run_script", run_here)
    yield ran
    AcceleratorState._reset_state(reset_partial_state=True)


def test_rehearsal_from_beginning_to_end(here, tmp_path, caplog):
    on_gpu(tmp_path, "--rehearse", "--minutes", 0)
    before = json.loads((tmp_path / "parts.json").read_text())
    assert [part["name"] for part in before] == NAMES and {part["state"] for part in before} == {"left"} and not here

    on_gpu(tmp_path, "--rehearse", "--minutes", 30)
    after = json.loads((tmp_path / "parts.json").read_text())
    assert {part["state"] for part in after} == {"done"}, after
    assert here.count("benchmark.py") == len(NAMES) - 1 and here.count("train.py") == 3  # not again for the memory
    told = (tmp_path / "home" / "summary.md").read_text()
    assert told == (tmp_path / "summary.md").read_text() and "REHEARSAL" in told
    headings = [line for line in told.splitlines() if line.startswith("#")]
    assert headings[:4] == ["# On a GPU", "## Tests", "## Parts", "## Goals"] and len(headings) == 15
    assert "# batch-64" in headings and "# batch-8" in headings and "profiles.png" in told
    assert "skipped" in told and "| training, share of the matrix-product peak | at least 40% | " in told
    assert len(list((tmp_path / "home").glob("*/profile-*.json.gz"))) == 4
    assert (tmp_path / "home" / "batch-64" / "steps.json").read_text() == (tmp_path / "batch-64/steps.json").read_text()

    here.clear()
    on_gpu(tmp_path, "--rehearse")
    assert not here and "everything is done" in caplog.messages[-1]


def test_mistakes_are_one_line(here, tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"machine": "NVIDIA A100"}))
    for words, says in (
        ([], "rehearse=false: this machine has no CUDA device"),
        (["--rehearse", "--minutes", -1], "minutes=-1.0: at least 0"),
        (["--rehearse", "--images", tmp_path / "absent"], "absent does not exist"),
        (["--rehearse"], "was started with machine NVIDIA A100 (now CPU"),
    ):
        with pytest.raises(SystemExit) as exit:
            on_gpu(tmp_path, *words)
        assert exit.value.code == 2 and says in capsys.readouterr().err


def test_every_part_is_a_command_that_its_script_accepts(tmp_path, monkeypatch):
    accepted = []

    def parse(script, *words, deadline, log, patience):
        module = runpy.run_path(str(ROOT / "scripts" / script))
        accepted.append(cli.parse(module["Settings"], module["parser"](), list(map(str, words))))
        raise OutOfTime("not here")

    monkeypatch.setattr(parts, "run_script", parse)
    asked = Visit(tmp_path, "fp16", time.monotonic() + 600, images=str(tmp_path))
    _, *scripts = parts.parts(asked)
    for part in scripts:
        with pytest.raises(OutOfTime):
            part.run(asked)
    asked_for = [settings.questions for settings in accepted[:-1]]
    assert [name for (name,) in asked_for] == [
        "updates", "cores", "steps", "sampling", "published", "steps", "sampling", "profiles", "rates"
    ]  # fmt: skip
    assert all(settings.precision == "fp16" and 5 < settings.minutes < 10 for settings in accepted)
    assert accepted[-1].data == "cifar10" and "--run.mixed_precision fp16" in accepted[-1].train
    assert {settings.size for settings in accepted[:-1]} == {"XL"} and accepted[3].budgets == (140, 280, 560)


def test_what_a_measurement_comes_to(tmp_path, monkeypatch):
    asked = Visit(tmp_path, "bf16", time.monotonic() + 600)
    part = parts.measuring("x", "")
    progress = tmp_path / "batch-64" / "progress.json"
    progress.parent.mkdir()

    def ends(made, error=None):
        def run(*words, **settings):
            assert not progress.exists()  # that of an earlier call says nothing
            if made is not None:
                progress.write_text(json.dumps(made))
            if error is not None:
                raise error

        monkeypatch.setattr(parts, "run_script", run)

    ends({"left": [], "failed": []})
    assert part.run(asked) == Outcome(True, "")
    ends({"left": ["b", "c"], "failed": []})
    assert part.run(asked) == Outcome(False, "2 left, the next is b")
    ends({"left": [], "failed": ["a (too large)"]}, ValueError("exit status 2"))
    assert part.run(asked) == Outcome(True, "left out a (too large)")
    for error in (ValueError("exit status 1"), OutOfTime("stopped")):
        ends(None, error)
        with pytest.raises(type(error)):
            part.run(asked)


def test_what_fails_or_hangs_does_not_keep_the_others_waiting(tmp_path, monkeypatch):
    ran, ends = [], {"a": ValueError("no | such\nfile"), "b": OutOfTime("stopped"), "c": Outcome(False, "1 left"),
                     "d": Outcome(True, "")}  # fmt: skip

    def part(name):
        def run(asked):
            ran.append(name)
            if isinstance(ends[name], BaseException):
                raise ends[name]
            return ends[name]

        return Part(name, f"part {name}", run)

    monkeypatch.setattr(visit, "parts", lambda asked: [part(name) for name in ends])
    asked = Visit(tmp_path, "bf16", time.monotonic() + 600)
    assert not visit.resume(asked, {}) and ran == list("abcd")
    told = (tmp_path / "summary.md").read_text()
    assert "| a | part a | failed | ValueError: no / such file | 0.0 |" in told and "| d | part d | done |  |" in told
    ran.clear()
    ends["c"], ends["b"] = Outcome(True, ""), SystemExit(143)
    with pytest.raises(SystemExit):
        visit.resume(asked, {})
    assert ran == list("cab")
    states = {record["name"]: record["state"] for record in json.loads((tmp_path / "parts.json").read_text())}
    assert states == {"a": "failed", "b": "stopped", "c": "done", "d": "done"}
    ran.clear()
    ends |= {"a": Outcome(True, ""), "b": Outcome(True, "")}
    assert visit.resume(asked, {}) and ran == list("ab")


@pytest.fixture
def few_tests(tmp_path, monkeypatch):
    """A project with some tests in tests/gpu; one of them hangs as long as a file is there."""
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "hang").touch()
    (tmp_path / "tests" / "gpu" / "test_x.py").write_text(
        "import pathlib, time, pytest\n"
        "@pytest.mark.parametrize('way', [{'a': 1}, 'b'], ids=str)\n"
        "def test_one(way): pass\n"
        "def test_bad(): assert 1 == 2, 'not so'\n"
        "def test_hangs():\n    while pathlib.Path('hang').exists(): time.sleep(0.05)\n"
        "def test_hangs_not(): pass\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_absent(): pass\n"
    )
    return tmp_path


def test_gpu_tests_are_resumed_and_failures_told_first(few_tests, tmp_path):
    log = tmp_path / "tests.log"
    for _ in range(20):  # as often as it takes a slow machine to come so far
        with pytest.raises(OutOfTime, match="the time limit is reached, the same command resumes"):
            gpu_tests.run_tests(log, time.monotonic() + 8)
        if str(gpu_tests.read_log(log)) == "1 failed, 2 passed" and "test_hangs " in log.read_text():
            break
    names = [f"tests/gpu/test_x.py::test_{name}" for name in ("hangs_not", "absent", "hangs")]
    assert gpu_tests.unfinished(log) == names  # the one that was interrupted is the last
    (tmp_path / "hang").unlink()
    length = len(log.read_text())
    assert gpu_tests.run_tests(log, time.monotonic() + 60) == "1 failed, 4 passed, 1 skipped"
    assert "test_one" not in log.read_text()[length:]
    assert gpu_tests.unfinished(log) == []
    summary.write_summary(tmp_path, {"machine": "a GPU"}, [])
    section = (tmp_path / "summary.md").read_text().split("## ")[1]
    assert section.startswith(
        "Tests\n\n**1 failed, 4 passed, 1 skipped**:\n\n- `tests/gpu/test_x.py::test_bad`: Assert"
    )
    assert "not so" in section


def test_pytest_that_fails_itself_is_no_result(few_tests, tmp_path):
    (few_tests / "tests" / "gpu" / "test_x.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError, match="pytest ended with exit status 2"):
        gpu_tests.run_tests(tmp_path / "tests.log", time.monotonic() + 60)


def step(family, mode, gib, share, **case):
    return {"family": family, "mode": mode, "batch": 64, "counted_gib": 10.0, "measured_gib": gib, "reserved_gib": 50.0,
            "tflops": share, "peak_tflops": 1.0, **case}  # fmt: skip


def test_goals_are_held_against_the_best_mode():
    updates = {"updates": 12, "step": LARGEST}
    drawn = {"model": "FPDM-XL/2", "batch": 8, "tflops": 0.6, "peak_tflops": 1.0, "blocks_s": 0.9}
    rows = {
        "steps": [step("DiT", "eager", 20.0, 0.9), step("FPDM", "eager", 9.0, 0.3, **updates),
                  step("FPDM", "compiled", 9.0, 0.5, **updates), step("FPDM", "compiled", 9.0, 0.39, **updates),
                  step("FPDM", "checkpointing", 9.0, 0.9, **updates)],
        "sampling": [drawn | {"mode": "eager", "images_per_s": 1.0, "latents_per_s": 1.1}],
        "published": [{"work": "training", "published_images_per_s": 2.0, "ours_images_per_s": 2.2,
                       "compiled_images_per_s": 3.0}],
        "updates": [{"mode": "compiled", "batch": 8, "update_ms": 1.5, "block_ms": 1.0},
                    {"mode": "compiled", "batch": 1, "update_ms": 3.0, "block_ms": 1.0}],
        "cores": [{"mode": "eager", "injection": "add", "ratio": (1.0, 1.06, 1.1)},
                  {"mode": "compiled", "injection": "add", "ratio": (1.0, 1.01, 1.1)},
                  {"mode": "compiled", "injection": "mlp", "ratio": (1.3, 1.4, 1.5)}],
    }  # fmt: skip
    found = [(goal.measured, goal.reached) for goal in goals(rows)]
    assert found == [
        ("39% to 50%, compiled", False), ("60%, eager", True), ("1.50, compiled", True), ("", None),
        ("1.50, compiled", False), ("1.010, compiled", True),
        ("10.0%, eager", False), ("1.0%, eager", True), ("45%, eager", True), ("", None),
        ("", None),
    ]  # fmt: skip
    graphs = [drawn | {"mode": mode, "latents_per_s": speed} for mode, speed in (("compiled", 2.0), ("graphs", 3.0))]
    told = remarks(rows, {"sampling": graphs})
    assert "counted, 5 training steps: 0.90 to 2.00 times" in told[0]
    assert told[1].startswith("CUDA graphs, FPDM-XL/2, batch 8: latents 1.50 times as fast")
    assert all(goal.reached is None for goal in goals({})) and remarks({}, {}) == []


def test_what_is_brought_home_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "LIMIT", summary.OF_SUMMARY + 1000)
    (tmp_path / "batch-64").mkdir()
    (tmp_path / "cifar10" / "checkpoints" / "1").mkdir(parents=True)
    for name, size in {"batch-64/steps.json": 400, "batch-64/profile-a.json.gz": 500, "batch-64/profile-b.json.gz": 600,
                       "cifar10/checkpoints/1/config.json": 10, "cifar10/trainer.pt": 10}.items():  # fmt: skip
        (tmp_path / name).write_text("[]".ljust(size))
    for _ in range(2):  # home itself is not brought home
        summary.write_summary(tmp_path, {}, [])
        home = {str(path.relative_to(tmp_path / "home")) for path in (tmp_path / "home").rglob("*") if path.is_file()}
        assert home == {"summary.md", "batch-64/steps.json", "batch-64/profile-a.json.gz"}
    told = (tmp_path / "summary.md").read_text()
    assert "Left out, because the limit is 1 MB in total: batch-64/profile-b.json.gz (0.0 MB)." in told
