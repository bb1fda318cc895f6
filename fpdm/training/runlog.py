"""What a run tells: its folder, log.jsonl, log.txt, the console and the first screen."""

import json
import logging
import re
from pathlib import Path

from torch import nn
from tqdm import tqdm

from fpdm.files import write_atomically
from fpdm.training.checkpoint import has_checkpoint

logger = logging.getLogger("fpdm")


class RunLog:
    """Writes one run's log; on ranks other than the main one it says nothing."""

    def __init__(self, run: Path, is_main: bool):
        self.run, self.is_main = run, is_main
        self._jsonl = (run / "log.jsonl").open("a", buffering=1) if is_main else None
        self._text = logging.FileHandler(run / "log.txt") if is_main else None
        if is_main:
            self._text.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            logger.addHandler(self._text)
            if logger.level == logging.NOTSET:  # called from Python, not from a script that has set it
                logger.setLevel(logging.INFO)

    def say(self, message: str) -> None:
        """One line (or table) on the console and in log.txt, above the progress bar."""
        if self.is_main:
            with tqdm.external_write_mode():
                logger.info(message)

    def record(self, step: int, values: dict[str, float]) -> None:
        """One line of log.jsonl, and its short form on the console and in log.txt."""
        if self.is_main:
            self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
            self.say(f"step {step:>7d}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def close(self) -> None:
        if self.is_main:
            self._jsonl.close()
            logger.removeHandler(self._text)
            self._text.close()


def new_run(results: str, name: str) -> Path:
    """Create results/<number>-<name> with the next free number."""
    root = Path(results)
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(match[1]) for path in root.iterdir() if (match := re.match(r"(\d+)-", path.name))]
    run = root / f"{max(taken, default=-1) + 1:03d}-{name.replace('/', '-')}"
    (run / "checkpoints").mkdir(parents=True)
    return run


def latest_run(results: str, name: str) -> Path:
    """The newest run of this name that has a checkpoint."""
    name = name.replace("/", "-")
    runs = [path for path in Path(results).glob("*") if re.fullmatch(rf"\d+-{re.escape(name)}", path.name)]
    runs = sorted(filter(has_checkpoint, runs), key=run_number)
    if not runs:
        raise FileNotFoundError(f"--resume latest: no run named {name} with a checkpoint in {results}")
    return runs[-1]


def run_number(run: Path) -> int:
    """7 of results/007-name."""
    return int(run.name.split("-")[0])


def forget_after(run: Path, step: int) -> None:
    """Drop log.jsonl lines later than `step`: a resumed run writes them again."""
    path = run / "log.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # the line a kill cut short
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def model_table(model: nn.Module) -> str:
    """Top-level modules with their trainable parameters, one a line."""
    rows = [(name, type(child).__name__, _parameters(child)) for name, child in model.named_children()]
    rows.append(("total", type(model).__name__, _parameters(model)))
    return "\n".join(f"  {name:<14s}{kind:<18s}{count:>14,d}" for name, kind, count in rows)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
