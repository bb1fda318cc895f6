"""scripts/benchmark.py at tiny size: every question measured, stopped, resumed, reported."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fpdm.benchmarks import updates
from fpdm.benchmarks.answers import Progress, answer
from fpdm.benchmarks.choices import OTHERS
from fpdm.benchmarks.timing import Bench, Question
from fpdm.demo.models import released
from fpdm.injections import INJECTIONS

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
ROWS = {"updates": 2, "cores": len(INJECTIONS), "memory": 6, "steps": 3, "published": 2, "sampling": 4, "ranks": 1,
        "rates": 5, "profiles": 4, "choices": 2 * len(OTHERS), "dial": 2 * len(released())}  # fmt: skip


BENCH = Bench(torch.device("cpu"), "no", 1)


@pytest.fixture
def benchmark(tmp_path, tiny):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*words) -> str:
        command = [sys.executable, "scripts/benchmark.py", "--out", tmp_path / "out", *tiny["benchmark.py"], *words]
        done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_benchmark_from_beginning_to_end(benchmark, tmp_path):
    out = tmp_path / "out"
    assert "the same command resumes" in benchmark("--minutes", 0)
    assert len(json.loads((out / "progress.json").read_text())["left"]) == sum(ROWS.values())
    said = benchmark()
    assert json.loads((out / "progress.json").read_text()) == {"left": [], "failed": []}
    for name, count in ROWS.items():
        rows = json.loads((out / f"{name}.json").read_text())
        assert len(rows) == count, name
        numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
        assert all(0 <= number < 1e16 for number in numbers) and (numbers or name in ("memory", "profiles")), name
        table = (out / f"{name}.md").read_text()
        assert table in said and table in (out / "report.md").read_text()
        heads = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(heads) <= 2, f"{name}: a row that does not fit its table"
    profiles = json.loads((out / "profiles.json").read_text())
    assert all(row["seconds"]["matrix products"] > 0 for row in profiles)
    assert (out / "profiles.png").stat().st_size > 10_000 and len(list(out.glob("profile-*.json.gz"))) == 4
    before = (out / "steps.json").read_text()
    assert "steps: " not in benchmark("--questions", "steps")  # it is there already
    assert (out / "steps.json").read_text() == before
    assert "| FPDM-XS/2 | graphs | 12 |" in benchmark("--questions", "sampling", "--modes", "graphs", "--budgets", 12)


def test_what_does_not_fit_is_said_and_not_tried_again(tmp_path):
    tried = []

    def measure(bench, size):
        tried.append(size)
        if size > 1:
            raise {2: torch.OutOfMemoryError("too large"), 3: RuntimeError("no\nkernel")}[size]
        return {"ms": 1.0}

    question = Question("Sizes", [{"size": 2}, {"size": 3}, {"size": 1}], measure, lambda rows: f"{len(rows)} rows")
    for _ in range(2):
        progress = Progress([], [])
        answer(BENCH, question, "sizes", tmp_path, None, progress)
        assert "size 2 (too large; to try it again, remove it from" in progress.failed[0]
        assert "size 3 (RuntimeError: no kernel; " in progress.failed[1] and len(progress.failed) == 2
        assert "1 rows" in (tmp_path / "sizes.md").read_text() and not progress.left
    assert tried == [2, 3, 1]
    kept = json.loads((tmp_path / "sizes.json").read_text())
    assert [row.get("failed") for row in kept] == ["too large", "RuntimeError: no kernel", None]


def test_no_case_begins_that_does_not_fit_the_time(tmp_path):
    """By the longest before it; what is there already stays in the table."""
    question = Question("", [{"size": 1}, {"size": 2}], lambda bench, size: {}, lambda rows: f"{len(rows)} rows")
    (tmp_path / "sizes.json").write_text(json.dumps([{"size": 2, "took_s": 100}]))
    for seconds, left in ((90, ["sizes: size 1"]), (200, [])):
        progress = Progress([], [])
        answer(BENCH, question, "sizes", tmp_path, time.monotonic() + seconds, progress)
        assert progress.left == left and not progress.failed
        assert f"{2 - len(left)} rows" in (tmp_path / "sizes.md").read_text()


def test_an_update_costs_what_its_arithmetic_says_against_a_block():
    """At XL: 1.32 times a block's FLOPs, and 1.48 in the published form."""
    width, tokens = 1152, 256
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width + 2 * 6 * width**2
    update = block - 2 * 6 * width**2 + 2 * tokens * 4 * width**2
    naive = block + 2 * tokens * 6 * width**2
    row = updates.measure(BENCH, size="XL", batch=1, tokens=tokens, mode="eager")
    assert (row["block_flops"], row["update_flops"], row["naive_flops"]) == (block, update, naive)
    assert round(update / block, 2) == 1.32 and round(naive / block, 2) == 1.48
    assert all(row[f"{name}_ms"] > 0 for name in ("block", "update", "naive"))


def test_compiled_layers_are_measured_without_compiling_again():
    row = updates.measure(BENCH, size="XS", batch=1, tokens=16, mode="compiled")
    assert row["first_s"] > row["update_ms"] / 1e3 and "XS | compiled | 1" in updates.table([row | {
        "size": "XS", "mode": "compiled", "batch": 1, "tokens": 16}])  # fmt: skip
