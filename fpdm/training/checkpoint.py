"""Checkpoints: written under another name, synced, then renamed, so a kill at any moment leaves the last one intact.

checkpoints/0050000/model/    config.json, model.safetensors, sampling.json, with attributes attributes.safetensors
                    ema/      the same, and so every other average (fpdm.training.ema)
                    trainer.pt
checkpoints/latest            link to the newest
checkpoints/best              link to the one with the best validation, with run.keep_best
"""

import os
import random
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError

from fpdm.damage import damaged
from fpdm.files import sync_to_disk
from fpdm.models.pretrained import WEIGHTS_FILE
from fpdm.training.facts import SAMPLING, write_facts

TRAINER = "trainer.pt"
LATEST, BEST = "latest", "best"
REPLACED = "-replaced"  # the old checkpoint while a new one of the same step is written
PARTIAL, REMOVED = ".partial-", ".removed-"  # being written, being deleted: not checkpoints


def save_checkpoint(
    run: Path, step: int, weights: dict[str, PyTorchModelHubMixin], trainer: dict, sampling: dict
) -> Path:
    """Write checkpoint `step` of a run (main process only).

    weights: models by the names of their folders, `model` and `ema` among them.
    trainer: everything besides weights that resuming needs, in plain containers and tensors.
    sampling: what sampling needs besides the network (diffusion, codec, class names).
    OSError if it cannot be written, for example on a full disk; the previous checkpoint is then still there.
    """
    folder = run / "checkpoints"
    final, partial = folder / f"{step:07d}", folder / f"{PARTIAL}{step:07d}"
    _clear_remains(folder)
    try:
        for name, model in weights.items():
            model.save_pretrained(partial / name)
            write_facts(partial / name, sampling)
            # Weights are written readable only by their owner, whatever the umask; give them the other files' mode.
            (partial / name / WEIGHTS_FILE).chmod((partial / name / SAMPLING).stat().st_mode)
        torch.save(trainer, partial / TRAINER)
        for path in [*partial.rglob("*"), partial]:
            sync_to_disk(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own on a full disk
        _clear_remains(folder)
        before = (
            f"the previous one, {_locate(run).name}, is intact" if has_checkpoint(run) else "there is no previous one"
        )
        raise OSError(
            f"checkpoint {final} could not be written ({error}); {before}. "
            f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free there: make room, then resume with "
            f"--resume {run}"
        ) from error
    replaced = folder / f"{step:07d}{REPLACED}"
    if final.exists():  # written again by a resumed run; the old one can be found until the new one is renamed
        if replaced.exists():
            shutil.rmtree(replaced)
        os.replace(final, replaced)
    os.replace(partial, final)
    point_latest(final)
    if replaced.exists():
        shutil.rmtree(replaced)
    return final


def prune_checkpoints(run: Path, step: int, keep_last: int | None, keep_every: int | None) -> None:
    """Once checkpoint `step` is written, delete the older ones that `run.keep_last` and `run.keep_every` do not keep,
    and what a kill left of others.

    The best one stays, and checkpoints of later steps, which the run may have written before it was resumed.
    """
    folder = run / "checkpoints"
    _clear_remains(folder)
    if keep_last is None:
        return
    whole = [path for path in folder.iterdir() if path.name.removesuffix(REPLACED).isdigit()]
    older = sorted((path for path in whole if step_of(path) <= step), key=step_of)
    best = os.readlink(folder / BEST) if (folder / BEST).is_symlink() else None
    for old in older[:-keep_last]:
        if old.name != best and (keep_every is None or step_of(old) % keep_every):
            os.replace(old, folder / f"{REMOVED}{old.name}")  # a kill leaves no half-deleted checkpoint
    _clear_remains(folder)


def _clear_remains(folder: Path) -> None:
    """Delete what is not, or no longer, a checkpoint. What another program holds open is deleted next time."""
    older = [path for path in folder.glob(f"*{REPLACED}") if path.with_name(f"{step_of(path):07d}").exists()]
    remains = [*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{REMOVED}*"), *older]
    if remains:
        sync_to_disk(folder)  # else a power failure may keep their old names and lose what is in them
    for path in remains:
        shutil.rmtree(path, ignore_errors=True)


def load_trainer(checkpoint: Path) -> dict:
    """The `trainer` of `save_checkpoint`, on the CPU.

    Its tensors are mapped from the file: all processes of a machine share one copy, and only while they read from it.
    """
    with damaged_trainer(checkpoint):
        return torch.load(checkpoint / TRAINER, map_location="cpu", weights_only=True, mmap=True)


def damaged_trainer(checkpoint: Path) -> AbstractContextManager[None]:
    """Any error inside says that the checkpoint's trainer.pt is damaged: while it is read, or put to use."""
    path = checkpoint / TRAINER
    return damaged(path, f"{path} is damaged", "resume from an earlier checkpoint")


def find_checkpoint(source: str | Path) -> Path:
    """A run's latest checkpoint, or `source` itself if it is a checkpoint."""
    path = Path(source)
    if (found := _locate(path)) is not None:
        return found.resolve()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {source} does not exist")
    if path.is_file():
        raise FileNotFoundError(
            f"{source} is a file, not a checkpoint folder; for a published .pt use import_checkpoint.py"
        )
    raise FileNotFoundError(
        f"{source} holds no checkpoint: give a run folder, one of its checkpoints/<step>, or an exported folder"
    )


def has_checkpoint(run: Path) -> bool:
    """Whether `run` is the folder of a run with a checkpoint, or a checkpoint itself."""
    return _locate(run) is not None


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint: 50000 for checkpoints/0050000."""
    name = checkpoint.name.removesuffix(REPLACED)
    if not name.isdigit():
        raise ValueError(f"checkpoint {checkpoint}: its name must be its step, as in 0050000; rename it back")
    return int(name)


def _locate(path: Path) -> Path | None:
    candidates = [path]
    for folder in (path / "checkpoints", path):
        if (folder / LATEST).is_symlink():
            name = os.readlink(folder / LATEST)
            candidates += [folder / name, folder / f"{name}{REPLACED}"]
    return next((candidate for candidate in candidates if (candidate / "ema").is_dir()), None)


def random_states() -> list[dict]:
    """Each rank's random states, gathered. Our own draws are keyed by step, but those that a user adds may not be."""
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    state = {
        "python": [python_state[0], list(python_state[1]), python_state[2]],
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return gather_object([state])


def restore_random_states(states: list[dict], rank: int) -> None:
    """Restore this rank's part of `random_states`. A rank that did not exist then keeps its own state."""
    if rank >= len(states):
        return
    state = states[rank]
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, values, *rest = state["numpy"]
    np.random.set_state((name, np.array(values, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def point_latest(checkpoint: Path) -> None:
    """Make checkpoints/latest a link to this checkpoint."""
    _point(LATEST, checkpoint)


def point_best(checkpoint: Path) -> None:
    """Make checkpoints/best a link to this checkpoint."""
    _point(BEST, checkpoint)


def _point(name: str, checkpoint: Path) -> None:
    folder = checkpoint.parent
    link = folder / f".{name}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    os.replace(link, folder / name)
    sync_to_disk(folder)
