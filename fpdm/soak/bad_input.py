"""Bad input: files mutated field by field and byte by byte, hostile archives and pickles, command lines and settings.

A command refuses it in one last line that begins with `error: ` and names the file or the setting, with exit status 2
and nothing written; or the change does no harm, and the command succeeds.
"""

import hashlib
import re
from pathlib import Path

from fpdm.soak.archives import OUTSIDE
from fpdm.soak.case import Case
from fpdm.soak.children import HUNG, Ended, command, run
from fpdm.soak.hostile import CANARY
from fpdm.soak.kinds import KINDS
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round

MEMORY = 2 * 2**30  # bytes that a command may map beyond what its libraries have mapped
SECONDS = 300  # until it hangs, on a machine with much other work
# Names that say of themselves that they are not finished. The last three are of a run, which is none before its first
# checkpoint; of one that is resumed, they are written before its checkpoint is read.
UNFINISHED = re.compile(r"\.partial(/|$)|(^|/)encoding\.json$|(^|/)config\.yaml$|(^|/)log\.jsonl$|(^|/)log\.txt$")
CACHE = re.compile(r"^cache/|/features/|^adaptive/000002.png$")  # new files of what was made of other, good input
BESIDE = ("whole", "records", "inputs", "said")  # parts of the material that no case reads


def play(material: Material, draw: Draws, folder: Path) -> Round:
    """One case; the kinds come in turn."""
    kind = list(KINDS)[draw.number % len(KINDS)]
    case = KINDS[kind](material, draw, folder)
    before, parts = listing(folder), states(material)
    work = command(case.words) if case.work is None else case.work
    ended = run(work, folder.with_suffix(".txt"), SECONDS, memory=MEMORY)
    did = {"kind": kind, "did": case.did, "mapped": ended.mapped}
    try:
        outcome = judged(ended, case)
        if (folder / CANARY).exists():
            raise Lost("a pickle was run")
        if escaped := [place for place in _outside(folder) if place.exists()]:
            raise Lost(f"it wrote {escaped[0]}")
        if changed := _changed(before, listing(folder), ended.well):
            raise Lost(f"it wrote {changed[:3]}: {ended.said[-500:]}")
        if states(material) != parts:
            raise Lost(f"it changed {sorted(states(material) ^ parts)[:3]}, which it was to read")
    except Lost as error:
        raise Lost(f"{kind}, {case.did}: {error}") from error
    return Round(kind, outcome, did)


def judged(ended: Ended, case: Case) -> str:
    """The outcome; Lost if it is neither of the two."""
    if HUNG in ended.statuses:
        raise Lost(f"hangs: {ended.said[-1000:]}")
    if "Traceback" in ended.said or ended.statuses[0] not in (0, 2):
        raise Lost(f"{ended.statuses} {ended.said[-2500:]}")
    if ended.well:
        return "harmless"
    lines = [line for line in ended.said.splitlines() if line.strip()]
    if len(ended.errors) != 1 or lines[-1] != ended.errors[0]:
        raise Lost(f"not one line, and the last: {ended.said[-1500:]}")
    if not any(re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", lines[-1]) for name in case.names):
        raise Lost(f"the line names none of {case.names[:10]}: {lines[-1][:1500]}")
    return "refused in one line"


def listing(folder: Path) -> dict[str, str]:
    """The files of a folder and hashes of their contents, without those that are not finished."""
    found = {}
    for path in sorted(folder.rglob("*")):
        where = str(path.relative_to(folder))
        if path.is_file() and not UNFINISHED.search(where):
            found[where] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return found


def states(material: Material) -> set[tuple]:
    """All files of the material with their sizes and times."""
    found = set()
    for part in material.folder.iterdir():
        for path in part.rglob("*") if part.name not in BESIDE else ():
            facts = path.lstat()
            found.add((str(path), facts.st_size, facts.st_mtime_ns) if path.is_file() else (str(path),))
    return found


def _changed(before: dict[str, str], after: dict[str, str], well: bool) -> list[str]:
    """Files that a refused command has made, changed or removed. One that succeeds may write."""
    if well:
        return []
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [name for name in names if name in before or not CACHE.search(name)]


def _outside(folder: Path) -> list[Path]:
    """Where names in a zip might lead to, from any folder that a command may take for theirs."""
    begins = {Path.cwd(), folder / "out" / "a" / "b"}
    return [above / OUTSIDE for begin in begins for above in (begin, *begin.parents)] + [
        folder / f"{OUTSIDE}-absolute"]  # fmt: skip
