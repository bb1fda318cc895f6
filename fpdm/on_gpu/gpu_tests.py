"""Runs tests/gpu within a time limit. The log records which tests are finished."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import ROOT, OutOfTime, last_line, run_python

TESTS = "tests/gpu"
PATIENCE = 20  # seconds that a test has to end when it is interrupted
RESULT = re.compile(rf"^({TESTS}/\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
REASON = re.compile(rf"^(?:FAILED|ERROR) ({TESTS}/\S+?\.py::.+?)(?: - (.*))?$", re.MULTILINE)
FAILED = ("FAILED", "ERROR")


class Tests(NamedTuple):
    """Results in a log. results: finished test -> PASSED, FAILED etc. failed: failed test -> reason."""

    results: dict[str, str]
    failed: dict[str, str]

    def __str__(self) -> str:
        words = list(self.results.values())
        counts = {"failed": sum(words.count(word) for word in FAILED), "passed": words.count("PASSED"),
                  "skipped": words.count("SKIPPED")}  # fmt: skip
        return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none finished"


def read_log(log: Path) -> Tests:
    """Results in the log of one or several calls of `run_tests`."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    results = dict(RESULT.findall(text))
    reasons = dict(REASON.findall(text))
    return Tests(results, {name: reasons.get(name, "") for name, word in results.items() if word in FAILED})


def run_tests(log: Path, deadline: float) -> str:
    """Run the tests of tests/gpu that are not in the log yet; returns a summary of all results.

    OutOfTime if the tests were stopped at the deadline, ValueError if pytest itself failed.
    """
    names = unfinished(log) if log.is_file() else [TESTS]
    if names:
        words = ["-u", "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *names]
        wide = {"COLUMNS": "400"}  # otherwise pytest truncates the reason of a failure
        status = run_python(words, deadline, log, signal.SIGINT, PATIENCE, ROOT, wide)
        if status is None:
            raise OutOfTime(f"{read_log(log)}; the time limit is reached, the same command resumes")
        if status not in (0, 1):
            raise ValueError(f"pytest ended with exit status {status}: {last_line(log)} (full output in {log})")
    return str(read_log(log))


def unfinished(log: Path) -> list[str]:
    """Tests without a result in the log. A test that was interrupted, or that ended pytest itself, comes last."""
    command = [sys.executable, "-m", "pytest", TESTS, "--collect-only", "-q", "--color=no", "-p", "no:cacheprovider"]
    collected = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    listed = collected.stdout.splitlines()
    if collected.returncode:  # tests of a file that cannot be imported must not count as finished
        raise ValueError(f"{TESTS} cannot be collected: {' '.join(listed[-3:])} {collected.stderr[-500:]}")
    finished, begun = read_log(log).results, log.read_text(errors="replace")
    left = [name for name in listed if name.startswith(f"{TESTS}/") and "::" in name and name not in finished]
    return sorted(left, key=lambda name: f"\n{name} " in begun)
