"""The output of a run: its folder, log.jsonl, log.txt, the console and the tracker."""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from fpdm.files import make_folder, sync_to_disk, write_atomically
from fpdm.records import damaged_line, fits, lines
from fpdm.training.checkpoint import has_checkpoint

logger = logging.getLogger("fpdm")
WANDB_ID = "wandb-id.txt"
LOG, TEXT = "log.jsonl", "log.txt"


class RunLog:
    """Writes one run's log; on ranks other than the main one it does nothing."""

    def __init__(self, run: Path, is_main: bool):
        self.run, self.is_main = run, is_main
        self._jsonl = (run / LOG).open("a", buffering=1) if is_main else None
        self._text = _TextFile(run / TEXT) if is_main else None
        if is_main:
            self._text.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            logger.addHandler(self._text)
            if logger.level == logging.NOTSET:  # called from Python; a script would have set it
                logger.setLevel(logging.INFO)

    def say(self, message: str) -> None:
        """One line (or table) on the console and in log.txt, above the progress bar."""
        if self.is_main:
            with tqdm.external_write_mode(), _told(self.run / TEXT):
                logger.info(message)

    def record(self, step: int, values: dict[str, float], line: str) -> None:
        """Write `values` to log.jsonl, and `line`, the same values for people, to the console and log.txt."""
        if self.is_main:
            with _told(self.run / LOG):
                self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
            self.say(line)

    def sync(self) -> None:
        """Put log.jsonl and its name on the disk, before a checkpoint that stands for its steps."""
        if self.is_main:
            os.fsync(self._jsonl.fileno())
            sync_to_disk(self.run)

    def close(self) -> None:
        if self.is_main:
            logger.removeHandler(self._text)
            for file in (self._jsonl, self._text):
                with suppress(OSError):  # of a full disk, already told of
                    file.close()


class _TextFile(logging.FileHandler):
    """One that does not hide its errors."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what `emit` has caught


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}); the checkpoints are intact") from error


def start_tracker(accelerator: Accelerator, tracker: str, run: Path, settings: dict) -> None:
    """TensorBoard, with its files in the run's folder; or W&B, in the project WANDB_PROJECT, or `fpdm`.

    A resumed run continues its own run at W&B, whose id is kept in its folder. W&B is offline unless WANDB_MODE says
    otherwise: a run must not hang on a machine without a network.
    """
    if tracker == "tensorboard":
        accelerator.init_trackers(run.name, settings)
    if tracker != "wandb":
        return
    path = run / WANDB_ID
    if accelerator.is_main_process and not path.exists():
        write_atomically(path, secrets.token_hex(4))
    accelerator.wait_for_everyone()
    mode = os.environ.get("WANDB_MODE", "offline")
    wandb = {"dir": str(run), "mode": mode, "name": run.name, "id": path.read_text().strip(), "resume": "allow"}
    accelerator.init_trackers(os.environ.get("WANDB_PROJECT", "fpdm"), settings, {"wandb": wandb})


def new_run(results: str, name: str) -> Path:
    """Create results/<number>-<name> with the next free number."""
    root = Path(results)
    make_folder(root)
    while True:
        taken = [int(match[1]) for path in root.iterdir() if (match := re.match(r"(\d+)-", path.name))]
        run = root / f"{max(taken, default=-1) + 1:03d}-{name.replace('/', '-')}"
        try:
            run.mkdir()
        except FileExistsError:  # another program took the number just now
            continue
        make_folder(run / "checkpoints")
        sync_to_disk(root)
        return run


def latest_run(results: str, name: str) -> Path:
    """The newest run of this name that has a checkpoint."""
    runs = _resumable_runs(results, name)
    if not runs:
        raise FileNotFoundError(f"--resume latest: no run named {name} with a checkpoint in {results}")
    return runs[-1]


def has_run(results: str, name: str) -> bool:
    """Whether there is a run of this name to resume."""
    return bool(_resumable_runs(results, name))


def _resumable_runs(results: str, name: str) -> list[Path]:
    name = name.replace("/", "-")
    runs = [path for path in Path(results).glob("*") if re.fullmatch(rf"\d+-{re.escape(name)}", path.name)]
    return sorted(filter(has_checkpoint, runs), key=run_number)


def run_number(run: Path) -> int:
    """The number of a run: 7 for results/007-name."""
    return int(run.name.split("-")[0])


def copy_log(run: Path, fork: Path, step: int) -> None:
    """Begin the log.jsonl of a fork with the lines of the run it comes from, up to `step`."""
    if (run / LOG).exists():
        write_atomically(fork / LOG, (run / LOG).read_text())
        forget_after(fork, step)


def forget_after(run: Path, step: int) -> None:
    """Drop log.jsonl lines later than `step`: a resumed run writes them again.

    Damaged lines after the last one that is kept are dropped too: a kill or a power failure may have left them.
    ValueError for one before, which was on the disk when the checkpoint was written.
    """
    path = run / LOG
    if not path.exists():
        return
    kept, damaged = [], []
    for line in lines(path):
        at = (line.content or {}).get("step")
        if not fits(at, int):
            damaged.append(line.number)
        elif at <= step:
            if damaged:
                raise ValueError(damaged_line(path, damaged[0]))
            kept.append(line.text)
    write_atomically(path, "".join(f"{line}\n" for line in kept))
