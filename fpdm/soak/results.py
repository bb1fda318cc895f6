"""What of a command's result must be the same after any interruption, and what must not be lost before."""

import hashlib
import json
import os
import re
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from fpdm.files import read_json
from fpdm.models import load_pretrained
from fpdm.sampling.images import is_complete
from fpdm.training.checkpoint import find_checkpoint, has_checkpoint, load_trainer, step_of

RATES = {"images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib"}
SAVED_ONCE = ("shard-*.bin", "manifest.json", "gathered.npz", "reconstruction.json")  # files that stay what they are
Saved = dict[str, int | str]


def runs_of(folder: Path) -> list[Path]:
    """The runs that have a checkpoint, in their order."""
    return [path for path in sorted(folder.glob("runs/*-*")) if has_checkpoint(path)]


def run_intact(folder: Path) -> None:
    """The last checkpoint opens, and so does every folder that is named as one."""
    for run_folder in runs_of(folder):
        places = [find_checkpoint(run_folder), *(run_folder / "checkpoints").glob("[0-9]*[0-9]")]
        for checkpoint in places:
            load_trainer(checkpoint)
            for name in ("model", "ema"):
                load_pretrained(checkpoint / name)


def run_result(folder: Path) -> dict:
    """Weights, averages, optimizer, counters, random states and log of the last run, as digests and lines."""
    return _result_of_run(runs_of(folder)[-1])


def runs_alike(folder: Path) -> None:
    """Two commands may have made a run each: AssertionError unless all of them are the same."""
    results = [_result_of_run(run_folder) for run_folder in runs_of(folder)]
    assert all(result == results[0] for result in results), f"the runs {runs_of(folder)} differ"


def _result_of_run(run_folder: Path) -> dict:
    checkpoint = find_checkpoint(run_folder)
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    weights = [*checkpoint.rglob("*.safetensors"), *run_folder.glob("snapshots/*.safetensors")]
    return {
        "checkpoints": sorted(path.name for path in (run_folder / "checkpoints").iterdir()),
        "latest": checkpoint.name,
        "log": [{name: value for name, value in line.items() if name not in RATES} for line in lines],
        "trainer": digest_of(load_trainer(checkpoint)),
        **{str(path.relative_to(run_folder)): digest_of(path) for path in sorted(weights)},
    }


def digest_of(value) -> str:
    """A hash of a file's bytes, or of tensors and numbers in containers."""
    if isinstance(value, Path):
        return hashlib.blake2b(value.read_bytes(), digest_size=16).hexdigest()
    if isinstance(value, Tensor):
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    if isinstance(value, dict):
        value = [[str(name), digest_of(part)] for name, part in sorted(value.items(), key=lambda item: str(item[0]))]
    elif isinstance(value, (list, tuple)):
        value = [digest_of(part) for part in value]
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def files_result(folder: Path) -> dict:
    """Names and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest_of(path) for path in files}


def saved(folder: Path) -> Saved:
    """What a command has saved for good. Numbers are steps, which must not fall; the rest must not change.

    A file is named by its number in the file system: one that is written again gets another. Steps of a run: those of
    its last checkpoint. Scores and measured cases: hashes.
    """
    found: Saved = {}
    with suppress(OSError, ValueError):  # of what is being renamed or removed just now
        for run_folder in runs_of(folder / "out") + runs_of(folder):
            found[f"step of {run_folder.relative_to(folder)}"] = step_of(find_checkpoint(run_folder))
    for path in _files(folder):
        if any(fnmatch(path.name, pattern) for pattern in SAVED_ONCE):
            found[str(path.relative_to(folder))] = _number(path)
    for path in folder.glob("samples/[0-9]*.png"):
        if is_complete(path):  # sampled images are not synced, so a power failure may cut one short
            found[path.name] = _number(path)
    for path in (folder / "out").glob("*.json"):
        found |= {f"{path.name}, {name}": digest_of(entry) for name, entry in _entries(path)}
    return found


def _files(folder: Path) -> list[Path]:
    """The files below a folder, without those in hidden folders, which are not finished. No error if some vanish."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names]
    return found


def _number(path: Path) -> str:
    try:
        return f"file {path.stat().st_ino}"
    except FileNotFoundError:
        return "gone"


def _entries(path: Path) -> list[tuple[str, object]]:
    """The scores in a study's scores.json, or the cases in a file of a benchmark."""
    with suppress(OSError, ValueError):
        content = read_json(path)
        if path.name == "scores.json":
            return list(content.items())
        if isinstance(content, list):
            return [(str(i), entry) for i, entry in enumerate(content)]
    return []


def lost_between(before: Saved, after: Saved) -> list[str]:
    """What was saved and is there no more, has a lower number, or was made again."""
    found = []
    for name, value in before.items():
        now = after.get(name)
        if now is None or (now < value if isinstance(value, int) else now != value):
            found.append(f"{name}: {value}, now {'gone' if now is None else now}")
    return found


def logged(folder: Path) -> dict[Path, int]:
    """The logs for people of all runs, and their lengths."""
    return {path: path.stat().st_size for path in folder.rglob("log.txt")}


def steps_again(before: Saved, lengths: dict[Path, int]) -> list[str]:
    """Steps that a resumed command took although a checkpoint has them: its log tells of each."""
    found = []
    for name, step in before.items():
        for path, length in lengths.items() if name.startswith("step of ") else ():
            if path.parent.name == Path(name).name:
                taken = re.findall(r"step +(\d+)/", path.read_bytes()[length:].decode(errors="replace"))
                found += [f"{path.parent.name}: step {other} again" for other in taken if int(other) <= step]
    return found
