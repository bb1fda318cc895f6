"""What a disk may hold after a power failure, from short records."""

from pathlib import Path
from random import Random

from fpdm.soak.moments import Operation
from fpdm.soak.power import Entry, Moment, Record


def record(tmp_path, *moments: tuple) -> Record:
    """A record of operations, each (name, path, before, tree)."""
    place = tmp_path / "place"
    (place / "blobs").mkdir(parents=True)
    for content in ("old", "new content"):
        (place / "blobs" / content).write_text(content)
    (place / "record.jsonl").touch()
    found = Record(place, Path("/run"))
    found.moments = [
        Moment(Operation(name, path, before), {where: Entry(*entry) for where, entry in tree.items()})
        for name, path, before, tree in moments
    ]
    return found


def states(found: Record, tmp_path) -> set:
    """What the disk may hold after the last moment, over many draws: the content of `a`, None if it is not there."""
    contents = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        found.restore(folder, len(found.moments) - 1, Random(seed))
        contents.add((folder / "a").read_text() if (folder / "a").exists() else None)
    return contents


A, B = {"a": ("file", 1, "old")}, {"a": ("file", 1, "old"), "b": ("file", 2, "new content")}
RENAMED = {"a": ("file", 2, "new content")}
SYNCED = [("fsync", "/run/a", False, A), ("fsync", "/run", False, A)]


def test_a_rename_without_syncs_may_lose_everything(tmp_path):
    found = states(
        record(tmp_path, *SYNCED, ("os.rename", "/run/b", True, B), ("open", "/run/c", True, RENAMED)), tmp_path
    )
    assert {"old", "", "new content"} <= found and any(text not in ("old", "new content") for text in found if text)


def test_a_synced_file_is_old_or_new(tmp_path):
    synced = ("fsync", "/run/b", False, B)
    found = record(tmp_path, *SYNCED, synced, ("os.rename", "/run/b", True, B), ("open", "/run/c", True, RENAMED))
    assert states(found, tmp_path) == {"old", "new content"}


def test_a_synced_name_is_new(tmp_path):
    after = [("fsync", "/run/b", False, B), ("fsync", "/run", False, RENAMED)]
    assert states(record(tmp_path, *SYNCED, *after), tmp_path) == {"new content"}
