"""One call: runs the remaining parts until the deadline, and saves the state after each part."""

import json
import logging
import time
from dataclasses import asdict, dataclass, replace

from fpdm.chain import OutOfTime
from fpdm.config import check_choice
from fpdm.files import write_atomically
from fpdm.on_gpu.parts import Part, Visit, parts
from fpdm.on_gpu.summary import write_summary
from fpdm.records import read_records

logger = logging.getLogger("fpdm")
LEAST = 60  # minimum seconds before the deadline for a part to start
DONE, LEFT, STOPPED, FAILED = "done", "left", "stopped", "failed"


@dataclass
class Record:
    """The state of a part. state: done; left (will be resumed); stopped (at the deadline, during a measurement); or
    failed. seconds: over all calls."""

    name: str
    what: str
    state: str = LEFT
    said: str = ""
    seconds: float = 0.0

    def __post_init__(self):
        check_choice("state", self.state, (DONE, LEFT, STOPPED, FAILED))


def resume(visit: Visit, machine: dict[str, str]) -> bool:
    """Run the remaining parts until the deadline; returns whether everything is done.

    Parts that failed or were stopped run after all others in the next call, so that a part that never ends does not
    block the others. machine: facts for the summary.
    """
    path = visit.out / "parts.json"
    kept = {record.name: record for record in (read_records(path, Record) if path.is_file() else [])}
    every = parts(visit)
    records = {part.name: kept.get(part.name, Record(part.name, part.what)) for part in every}

    def keep() -> None:
        write_atomically(path, json.dumps([asdict(record) for record in records.values()], indent=1))
        try:
            write_summary(visit.out, machine, [asdict(record) for record in records.values()])
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
            records[part.name] = replace(before, state=STOPPED, said=f"stopped by {type(stop).__name__}")
            keep()
            raise
        seconds = time.monotonic() - begun
        records[part.name] = replace(before, state=state, said=said, seconds=before.seconds + seconds)
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
