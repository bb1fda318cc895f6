"""How many training steps each of several models makes in the same time."""

import json
import statistics
import tempfile
from pathlib import Path

import yaml

from fpdm.chain import Task, run_scripts
from fpdm.files import read_json, write_atomically

WARM, TIMED = 30, 60  # steps of one measurement
ROUNDS = 3


def steps_for_equal_time(
    path: Path, seconds: float, arguments: dict[str, list], deadline: float | None = None, at_once: int = 1,
    known: tuple[str, int] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Training steps of each model in `seconds` on this machine; measured once and kept in `path`.

    The number of steps must be known before training, because the learning rate is a function of the step. The models
    are measured in turn, in several rounds, and each has the median of its rates: a machine that is slower for a while
    is slower for all of them. arguments: of train.py, for each model. at_once: trainings at a time, as later.
    known: one of the models and its steps, measured earlier; the others then make more or fewer in proportion to their
    rates, so that it does not matter whether the machine is slower now.
    """
    if not path.exists():
        rates = {name: [] for name in arguments}
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                common = ["--run.results", folder, "--run.preview_every", 0, "--run.validate_every", 0,
                          "--run.keep_best", "false", "--optim.cooldown", 0, "--optim.steps", WARM + TIMED,
                          "--run.log_every", WARM]  # fmt: skip
                tasks = [
                    Task("train.py", (*words, *common, "--run.name", f"rate-{name}"), Path(folder, f"{name}.log"))
                    for name, words in arguments.items()
                ]
                run_scripts(tasks, at_once, deadline)
                for name in arguments:
                    (run,) = Path(folder).glob(f"*-rate-{name}")
                    rates[name].append(_steps_per_second(run))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        if known is not None:
            seconds = known[1] / medians[known[0]]
        steps = {name: max(int(seconds * rate), 1) for name, rate in medians.items()}
        path.with_name(f"{path.stem}-rates.json").write_text(json.dumps(rates, indent=1))
        write_atomically(path, json.dumps(steps))
    return read_json(path)


def _steps_per_second(run: Path) -> float:
    """Over the steps after the warm-up: their lines have equal numbers of steps, so the mean time is harmonic."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    batch = yaml.safe_load((run / "config.yaml").read_text())["optim"]["batch_size"]
    return statistics.harmonic_mean([line["images_per_s"] for line in lines if line["step"] > WARM]) / batch
