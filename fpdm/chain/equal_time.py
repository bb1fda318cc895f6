"""How many training steps each of several models makes in the same time."""

import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fpdm import cli
from fpdm.chain import Task, run_scripts
from fpdm.config import ExperimentConfig
from fpdm.files import write_atomically
from fpdm.records import check_fields, read_lines, read_object, read_sections

WARM, TIMED = 30, 60  # steps of one measurement
ROUNDS = 3
NEVER = 0.999  # share of so short a training that comes after its last step


def steps_for_equal_time(
    path: Path, seconds: float, arguments: dict[str, list], deadline: float | None = None, at_once: int = 1,
    known: tuple[str, int] | None = None, rounds: int = ROUNDS,
) -> dict[str, int]:  # fmt: skip
    """Training steps of each model in `seconds` on this machine; measured once and kept in `path`.

    The number of steps must be known before training, because the learning rate is a function of the step. The models
    are measured in turn, in several rounds, and each has the median of its rates: a machine that is slower for a while
    is slower for all of them. Where sjfb.grow or sjfb.consistency change what a step costs, every stage is measured.

    arguments: of train.py, for each model. at_once: trainings at a time, as later, from the first step that is measured
    to the last. known: one of the models and its steps, measured earlier; the others then make more or fewer in
    proportion to their rates, so that it does not matter whether the machine is slower now.
    """
    if not path.exists():
        rates = {name: [] for name in arguments}
        stages = {name: stages_of(words) for name, words in arguments.items()}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                common = ["--run.results", folder, "--run.preview_every", 0, "--run.validate_every", 0,
                          "--run.keep_best", "false", "--optim.cooldown", 0, "--optim.steps", WARM + TIMED,
                          "--run.log_every", WARM]  # fmt: skip
                tasks = [
                    Task("train.py", (*words, *stage.arguments, *common, "--run.name", f"rate-{name}-{i}"),
                         Path(folder, f"{name}-{i}.log"))
                    for name, words in arguments.items() for i, stage in enumerate(stages[name])
                ]  # fmt: skip
                run_scripts(tasks, at_once, deadline, _again(tasks))
                for name in arguments:
                    seconds_of_a_step = 0.0
                    for i, stage in enumerate(stages[name]):
                        (run,) = Path(folder).glob(f"*-rate-{name}-{i}")
                        seconds_of_a_step += stage.share / _steps_per_second(run)
                    rates[name].append(1 / seconds_of_a_step)
        medians = {name: statistics.median(found) for name, found in rates.items()}
        if known is not None:
            seconds = known[1] / medians[known[0]]
        steps = {name: max(int(seconds * rate), 1) for name, rate in medians.items()}
        write_atomically(path.with_name(f"{path.stem}-rates.json"), json.dumps(rates, indent=1))
        write_atomically(path, json.dumps(steps))
    steps = read_object(path)
    check_fields(path, steps, dict.fromkeys(arguments, int), list(arguments))
    return steps


def _again(tasks: list[Task]) -> Iterator[Task]:
    """The same trainings over and over, under other names: one that ran alone at the end would be faster."""
    for number, task in enumerate(itertools.cycle(tasks)):
        name = f"{task.arguments[-1]}-again-{number}"
        log = task.log.with_name(f"{name}.log")
        yield task._replace(arguments=(*task.arguments[:-1], name), log=log)


class Stage(NamedTuple):
    """A part of a training in which all steps cost the same on average. share: of all steps. arguments: with which
    train.py makes only such steps."""

    share: float
    arguments: tuple


def stages_of(words: list) -> list[Stage]:
    """The stages of a training with these arguments of train.py, which begin where sjfb.grow or sjfb.consistency_from
    change what a step costs; one if nothing does."""
    sjfb = cli.parse(ExperimentConfig, cli.make_parser(ExperimentConfig, ""), list(map(str, words))).sjfb
    grow, late = sjfb.grow or [[0.0, 0]], sjfb.consistency_from if sjfb.consistency else 0.0
    begins = sorted({late, *(share for share, _ in grow)})
    if len(begins) == 1:
        return [Stage(1.0, ())]
    found = []
    for begin, end in zip(begins, [*begins[1:], 1.0], strict=True):
        most = [count for share, count in grow if share <= begin][-1]
        later = "" if most == grow[-1][1] else f",[{NEVER},{int(grow[-1][1])}]"  # settings that need it are not refused
        limit = () if sjfb.grow is None else ("--sjfb.grow", f"[[0,{int(most)}]{later}]")
        pull = () if not late else ("--sjfb.consistency_from", 0 if begin >= late else NEVER)
        found.append(Stage(end - begin, (*limit, *pull)))
    return found


def _steps_per_second(run: Path) -> float:
    """Over the steps after the warm-up: their lines have equal numbers of steps, so the mean time is harmonic."""
    lines = read_lines(run / "log.jsonl", {"step": int, "images_per_s": float})
    batch = read_sections(run / "config.yaml", {"optim": {"batch_size": int}})["optim"]["batch_size"]
    return statistics.harmonic_mean([line["images_per_s"] for line in lines if line["step"] > WARM]) / batch
