"""One call: runs the remaining parts until the deadline, and saves the state after each part."""

import json
import logging
import time
from typing import NamedTuple

from fpdm.chain import OutOfTime
from fpdm.files import read_json, write_atomically
from fpdm.on_gpu.parts import Part, Visit, parts
from fpdm.on_gpu.summary import write_summary

logger = logging.getLogger("fpdm")
LEAST = 60  # minimum seconds before the deadline for a part to start
DONE, LEFT, STOPPED, FAILED = "done", "left", "stopped", "failed"


class Record(NamedTuple):
    """The state of a part. state: done; left (will be resumed); stopped (at the deadline, during a measurement); or
    failed. seconds: over all calls."""

    name: str
    what: str
    state: str = LEFT
    said: str = ""
    seconds: float = 0.0


def resume(visit: Visit, machine: dict[str, str]) -> bool:
    """Run the remaining parts until the deadline; returns whether everything is done.

    Parts that failed or were stopped run after all others in the next call, so that a part that never ends does not
    block the others. machine: facts for the summary.
    """
    path = visit.out / "parts.json"
    kept = {row["name"]: Record(**row) for row in (read_json(path) if path.is_file() else [])}
    every = parts(visit)
    records = {part.name: kept.get(part.name, Record(part.name, part.what)) for part in every}

    def keep() -> None:
        write_atomically(path, json.dumps([record._asdict() for record in records.values()], indent=1))
        try:
            write_summary(visit.out, machine, [record._asdict() for record in records.values()])
        except Exception:  # measuring continues, and the saved numbers are in a later summary
            logger.exception("the summary could not be written")

    keep()
    for part in sorted(every, key=lambda part: records[part.name].state in (STOPPED, FAILED)):
        before = records[part.name]
        if before.state == DONE:
            continue
        if time.monotonic() + LEAST > visit.deadline:
            break
        logger.info(f"{part.name}: {part.what}")
        begun = time.monotonic()
        try:
            state, said = attempt(part, visit)
        except BaseException as stop:  # SIGTERM, Ctrl-C
            records[part.name] = before._replace(state=STOPPED, said=f"stopped by {type(stop).__name__}")
            keep()
            raise
        seconds = time.monotonic() - begun
        records[part.name] = before._replace(state=state, said=said, seconds=before.seconds + seconds)
        logger.info(f"{part.name}: {state} after {seconds:.0f} s{f' ({said})' if said else ''}")
        keep()
    return all(record.state == DONE for record in records.values())


def attempt(part: Part, visit: Visit) -> tuple[str, str]:
    """Run a part; returns its state and a remark. An error in one part must not prevent the others."""
    try:
        outcome = part.run(visit)
    except OutOfTime as stopped:
        return STOPPED, str(stopped)
    except Exception as error:
        return FAILED, " ".join(f"{type(error).__name__}: {error}".split())
    return (DONE if outcome.done else LEFT), outcome.said
