"""Scripts that chain the others: run one as a user would, and give models equal time."""

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
from pathlib import Path

import yaml

from fpdm.files import read_json, write_atomically

logger = logging.getLogger("fpdm")
ROOT = Path(__file__).resolve().parents[2]
TRIAL = 30  # steps, after as many to warm up


class OutOfTime(ValueError):
    """A script was stopped at the deadline; what it had written is kept."""


def run_script(
    script: str, *arguments, deadline: float | None = None, log: Path | None = None, patience: float | None = None
) -> None:
    """Run scripts/<script>, showing the command as a user would type it.

    deadline: on time.monotonic()'s clock; then the script gets SIGTERM, for which train.py
    writes a checkpoint, and OutOfTime is raised. log: a file that takes the command and what the
    script says, at its end. patience: see `run_python`.
    """
    words = ["python", f"scripts/{script}", *map(str, arguments)]
    logger.info(f"\n$ {shlex.join(words)}")
    if log is not None:
        with log.open("a") as file:
            file.write(f"\n$ {shlex.join(words)}\n")
    status = run_python([ROOT / "scripts" / script, *words[2:]], deadline, log, patience=patience)
    if status is None:
        raise OutOfTime(f"scripts/{script} was stopped, for the time is over; the same command resumes it")
    if status:
        said = "its message is above" if log is None else f"{last_line(log)} (all of it is in {log})"
        raise ValueError(f"scripts/{script} failed with exit status {status}; {said}")


def run_python(
    words: list, deadline: float | None = None, log: Path | None = None, stop: signal.Signals = signal.SIGTERM,
    patience: float | None = None, folder: Path | None = None, variables: dict[str, str] | None = None,
) -> int | None:  # fmt: skip
    """The exit status of Python with these arguments; None where the deadline came first, see `run_script`.

    stop: the signal that it then gets. patience: seconds after which it is killed if that has not ended it
    (None for never). folder: to run in, if not the current one. variables: of the environment, besides ours.
    """
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= variables or {}
    if log is not None:
        environment.setdefault("TQDM_MININTERVAL", "10")  # a file keeps every state of a progress bar
    with nullcontext() if log is None else log.open("a") as output:
        process = subprocess.Popen([sys.executable, *map(str, words)], env=environment, cwd=folder, stdout=output,
                                   stderr=None if log is None else subprocess.STDOUT)  # fmt: skip
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
    """The last line of a text file that is not empty, where there is one."""
    return next((line.strip() for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")


def end_on_sigterm() -> None:
    """Let SIGTERM end this program by SystemExit, so that a script that it runs is stopped too and not left behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def last_record(run: Path) -> dict:
    """The newest line of a run's log.jsonl."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def keep_settings(path: Path, decisive: dict) -> None:
    """Note in `path` what a folder is made with; ValueError where it was begun with other settings."""
    decisive = json.loads(json.dumps(decisive))  # as it will be read
    before = read_json(path) if path.exists() else decisive
    if before != decisive:
        changed = ", ".join(f"{name} {before.get(name)} (now {decisive[name]})" for name in decisive
                            if before.get(name) != decisive[name])  # fmt: skip
        raise ValueError(f"{path.parent} was begun with {changed}; choose another --out")
    write_atomically(path, json.dumps(decisive))


def steps_for_equal_time(
    path: Path, seconds: float, arguments: dict[str, list], deadline: float | None = None
) -> dict[str, int]:
    """Training steps that each model makes in `seconds` on this machine; measured once, kept in `path`.

    arguments: of train.py for each model. The learning rate is a function of the step, so the
    number of steps must be known beforehand.
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
