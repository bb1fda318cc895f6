"""The folder of a script that runs other scripts: one program at a time writes to it, with the same settings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fpdm.files import write_atomically
from fpdm.locks import only_writer
from fpdm.records import read_object


@contextmanager
def study_folder(out: Path, decisive: dict) -> Iterator[None]:
    """Make the folder, or open it again, and hold its lock.

    decisive: the settings on which the results depend; they are kept in settings.json. ValueError if the folder was
    started with others, or if another program is writing to it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _keep_settings(out, json.loads(json.dumps(decisive)))  # as they will be read
        yield


def _keep_settings(out: Path, decisive: dict) -> None:
    path = out / "settings.json"
    before = read_object(path) if path.exists() else decisive
    if before != decisive:
        changed = ", ".join(f"{name} {before.get(name)} (now {decisive[name]})" for name in decisive
                            if before.get(name) != decisive[name])  # fmt: skip
        raise ValueError(f"{out} was started with {changed}; choose another --out")
    write_atomically(path, json.dumps(decisive))
