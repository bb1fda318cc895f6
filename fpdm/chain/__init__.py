"""Tools for scripts that run other scripts: run one as a user would, and train models for equal time."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import yaml

from fpdm.files import read_json, write_atomically

logger = logging.getLogger("fpdm")
ROOT = Path(__file__).resolve().parents[2]
TRIAL = 30  # steps that are measured, after as many warm-up steps


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
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= variables or {}
    if log is not None:
        environment.setdefault("TQDM_MININTERVAL", "10")  # every update of a progress bar is a line in the file
    # A job in the background ignores SIGINT, and would pass that on: its children could not be interrupted.
    heeded = partial(signal.signal, stop, signal.SIG_DFL)
    with nullcontext() if log is None else log.open("a") as output:
        process = subprocess.Popen([sys.executable, *map(str, words)], env=environment, cwd=folder, stdout=output,
                                   stderr=None if log is None else subprocess.STDOUT, preexec_fn=heeded)  # fmt: skip
        try:
            return process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            _end(process, stop, patience)
            return None
        except BaseException:
            _end(process, stop, patience)
            raise


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


def last_record(run: Path) -> dict:
    """The last line of a run's log.jsonl."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def keep_settings(path: Path, decisive: dict) -> None:
    """Save the settings of a folder in `path`; ValueError if the folder was started with other settings."""
    decisive = json.loads(json.dumps(decisive))  # as it will be read
    before = read_json(path) if path.exists() else decisive
    if before != decisive:
        changed = ", ".join(f"{name} {before.get(name)} (now {decisive[name]})" for name in decisive
                            if before.get(name) != decisive[name])  # fmt: skip
        raise ValueError(f"{path.parent} was started with {changed}; choose another --out")
    write_atomically(path, json.dumps(decisive))


def steps_for_equal_time(
    path: Path, seconds: float, arguments: dict[str, list], deadline: float | None = None
) -> dict[str, int]:
    """Training steps of each model in `seconds` on this machine; measured once and kept in `path`.

    arguments: of train.py, for each model. The number of steps must be known before training, because the learning rate
    is a function of the step.
    """
    if not path.exists():
        steps = {}
        for name, words in arguments.items():
            with tempfile.TemporaryDirectory() as folder:
                run_script("train.py", *words, "--run.results", folder, "--run.preview_every", 0,
                           "--optim.steps", 2 * TRIAL, "--run.log_every", TRIAL, deadline=deadline)  # fmt: skip
                run = next(Path(folder).iterdir())
                batch = yaml.safe_load((run / "config.yaml").read_text())["optim"]["batch_size"]
                steps[name] = max(int(seconds * last_record(run)["images_per_s"] / batch), 1)
        write_atomically(path, json.dumps(steps))
    return read_json(path)
