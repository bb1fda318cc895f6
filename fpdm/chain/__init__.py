"""Tools for scripts that run other scripts: run one, or several at a time, as a user would."""

import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

logger = logging.getLogger("fpdm")
ROOT = Path(__file__).resolve().parents[2]
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PARENT_ENDS = 1  # PR_SET_PDEATHSIG: which signal the system sends then


class OutOfTime(ValueError):
    """A script was stopped at the deadline. Its files are kept."""


def run_script(
    script: str, *arguments, deadline: float | None = None, log: Path | None = None, patience: float | None = None
) -> None:
    """Run scripts/<script>, and log the command as a user would type it.

    deadline: on time.monotonic()'s clock. Then the script gets SIGTERM, on which train.py writes a checkpoint, and
    OutOfTime is raised. log: a file to which the command and the script's output are appended. patience: see
    `run_python`. ValueError if the script fails.
    """
    words = ["python", f"scripts/{script}", *map(str, arguments)]
    logger.info(f"\n$ {shlex.join(words)}")
    if log is not None:
        with log.open("a") as file:
            file.write(f"\n$ {shlex.join(words)}\n")
    status = run_python([ROOT / "scripts" / script, *words[2:]], deadline, log, patience=patience)
    if status is None:
        raise OutOfTime(f"scripts/{script} was stopped, because the time limit is reached; the same command resumes it")
    if status:
        said = "its message is above" if log is None else f"{last_line(log)} (full output in {log})"
        raise ValueError(f"scripts/{script} failed with exit status {status}; {said}")


def run_python(
    words: list, deadline: float | None = None, log: Path | None = None, stop: signal.Signals = signal.SIGTERM,
    patience: float | None = None, folder: Path | None = None, variables: dict[str, str] | None = None,
) -> int | None:  # fmt: skip
    """Run Python with these arguments; returns its exit status, or None if the deadline came first (see `run_script`).

    stop: the signal at the deadline. patience: seconds after the signal until it is killed (None for never). folder:
    working directory, if not the current one. variables: further environment variables.
    """
    process = _start(words, log, stop, folder, variables or {})
    try:
        return process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        _end(process, stop, patience)
        return None
    except BaseException:
        _end(process, stop, patience)
        raise


class Task(NamedTuple):
    """A script with its arguments, and the file for its output. bears: an exit status that does not stop the others."""

    script: str
    arguments: tuple
    log: Path
    bears: int = 0


def run_scripts(
    tasks: Sequence[Task], at_once: int, deadline: float | None = None, beside: Iterable[Task] = ()
) -> list[Task]:
    """Run scripts, `at_once` at a time, in their order. Several share the threads of this process evenly.

    beside: further scripts, which keep the load constant: while one of the tasks runs, and none waits, these fill the
    places, and are stopped with the last task. Returns the tasks that ended with the status that they bear. Stops all
    of them, as `run_script` does, when one fails (ValueError) or at the deadline (OutOfTime).
    """
    threads = max(torch.get_num_threads() // at_once, 1)
    variables = {} if at_once == 1 else {"OMP_NUM_THREADS": str(threads)}
    waiting, left, running, borne, beside = list(tasks), len(tasks), {}, [], iter(beside)
    try:
        while left:
            if deadline is not None and time.monotonic() > deadline:
                raise OutOfTime("the time limit is reached; the same command resumes")
            while len(running) < at_once and (task := waiting.pop(0) if waiting else next(beside, None)) is not None:
                words = ["python", f"scripts/{task.script}", *map(str, task.arguments)]
                logger.info(f"\n$ {shlex.join(words)}")
                with task.log.open("a") as file:
                    file.write(f"\n$ {shlex.join(words)}\n")
                process = _start([ROOT / words[1], *words[2:]], task.log, signal.SIGTERM, None, variables)
                running[process] = task
            for process in [process for process in running if process.poll() is not None]:
                task = running.pop(process)
                left -= task in tasks
                if process.returncode and process.returncode == task.bears:
                    borne.append(task)
                elif process.returncode:
                    raise ValueError(
                        f"scripts/{task.script} failed with exit status {process.returncode}; {last_line(task.log)} "
                        f"(full output in {task.log})"
                    )
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return borne


def _start(
    words: list, log: Path | None, stop: signal.Signals, folder: Path | None, variables: dict[str, str]
) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} | variables
    if log is not None:
        environment.setdefault("TQDM_MININTERVAL", "10")  # every update of a progress bar is a line in the file

    def prepare() -> None:
        # A job in the background ignores SIGINT, and would pass that on: its children could not be interrupted.
        signal.signal(stop, signal.SIG_DFL)
        if LIBC is not None:  # a script must not go on writing when the one that started it was killed
            LIBC.prctl(PARENT_ENDS, signal.SIGKILL)

    with nullcontext() if log is None else log.open("a") as output:
        return subprocess.Popen([sys.executable, *map(str, words)], env=environment, cwd=folder, stdout=output,
                                stderr=None if log is None else subprocess.STDOUT, preexec_fn=prepare)  # fmt: skip


def _end(process: subprocess.Popen, stop: signal.Signals, patience: float | None) -> None:
    process.send_signal(stop)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """The last non-empty line of a text file, or an empty string."""
    return next((line.strip() for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")


def end_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that a script that this program runs is stopped too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
