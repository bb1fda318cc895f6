"""Answering a question: its cases are measured one after the other, kept in a file, and put into a table."""

import gc
import json
import logging
import time
from pathlib import Path
from typing import NamedTuple

import torch

from fpdm.benchmarks.profiles import shares
from fpdm.benchmarks.timing import Bench, Question
from fpdm.evaluation.figures import plot_shares
from fpdm.files import read_json, write_atomically
from fpdm.records import fits

logger = logging.getLogger("fpdm")
FIRST_CASE = 60  # assumed seconds of the first case of a question on a GPU, with compilation


class Progress(NamedTuple):
    """Descriptions of requested cases: left because of the time limit; failed, with the reason."""

    left: list[str]
    failed: list[str]


def answer(bench: Bench, question: Question, name: str, out: Path, deadline: float | None, progress: Progress) -> None:
    """Measure the cases that are not in <name>.json yet, and write the table of the requested cases.

    Failed cases are saved and not tried again. A case starts only if the remaining time is at least that of the longest
    earlier case. Cases from earlier runs are in the table too.
    """
    path = out / f"{name}.json"
    kept = read_json(path) if path.is_file() else []
    if not fits(kept, list[dict]):
        raise ValueError(f"{path}: expected a list of measured cases; remove it to measure them again")
    rows, on_gpu = [], bench.device.type == "cuda"
    for case in json.loads(json.dumps(question.cases)):  # in the form in which they are read from the file
        row = next((row for row in kept if all(row.get(key) == value for key, value in case.items())), None)
        described = f"{name}: {', '.join(f'{key} {value}' for key, value in case.items())}"
        if row is None:
            longest = max((row.get("took_s", 0) for row in kept), default=FIRST_CASE if on_gpu else 0)
            if deadline is not None and time.monotonic() + longest > deadline:
                progress.left.append(described)
                continue
            logger.info(described)
            row = measured(bench, question, case)
            kept.append(row)
            write_atomically(path, json.dumps(kept, indent=1))
            if "failed" in row:
                check_device(bench.device)
        if "failed" in row:
            progress.failed.append(f"{described} ({row['failed']}; to try it again, remove it from {path})")
            continue
        rows.append(row)
        write_atomically(out / f"{name}.md", f"## {question.title}\n\n{question.table(rows)}\n")
    if not question.cases:
        logger.info(f"{name}: nothing to measure with these modes")
    if rows:
        if name == "profiles":
            plot_shares(shares(rows), out / "profiles.png")
        logger.info(f"\n{(out / f'{name}.md').read_text()}")


def measured(bench: Bench, question: Question, case: dict) -> dict:
    """The case with its numbers and seconds, or with the reason of a failure, which must not stop the other cases."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    begun = time.monotonic()
    try:
        numbers = question.measure(bench, **case)
    except Exception as error:
        expected = isinstance(error, (torch.OutOfMemoryError, ValueError))  # train.py has logged its ValueError
        logger.info("", exc_info=not expected)
        said = " ".join(str(error).split())[:500]
        numbers = {"failed": said if expected else f"{type(error).__name__}: {said}"}
    return case | numbers | {"took_s": time.monotonic() - begun}


def check_device(device: torch.device) -> None:
    """Raise the error of a GPU after a failed kernel: this process cannot use the GPU any more."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
