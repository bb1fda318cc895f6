"""Snapshots of power-function averages: a run's snapshots/0050000-0.05.safetensors holds one at step 50,000.

They are kept for the whole run, because an average of another length needs those of many steps.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fpdm.damage import damaged
from fpdm.files import make_folder, replaced
from fpdm.training.ema import Average, PowerAverage
from fpdm.training.profiles import Profile, combine

FOLDER = "snapshots"
SUFFIX = ".safetensors"


def save_snapshots(run: Path, step: int, averages: Iterable[Average]) -> None:
    """Write those of the power-function averages, each file atomically. OSError if one cannot be written, for example
    on a full disk."""
    make_folder(run / FOLDER)
    for average in averages:
        if not isinstance(average, PowerAverage):
            continue
        with replaced(run / FOLDER / f"{step:07d}-{average.std}{SUFFIX}") as partial:
            try:
                save_file(average.model.state_dict(), partial)
            except SafetensorError as error:  # on a full disk, it raises its own
                raise OSError(f"{error}; make room, then resume with --resume {run}") from error
            partial.chmod((run / "config.yaml").stat().st_mode)  # it is written readable only by its owner


def find_snapshots(run: Path) -> dict[Profile, Path]:
    """A run's snapshots, by step."""
    found = {}
    for path in sorted((run / FOLDER).glob(f"*{SUFFIX}")):
        step, std = path.name.removesuffix(SUFFIX).split("-", 1)
        found[Profile(int(step), float(std))] = path
    return found


def snapshot_steps(run: Path) -> list[int]:
    """The steps that have snapshots."""
    return sorted({profile.step for profile in find_snapshots(run)})


def forget_snapshots_after(run: Path, step: int) -> None:
    """Delete the snapshots of later steps: a resumed run makes them again."""
    for profile, path in find_snapshots(run).items():
        if profile.step > step:
            path.unlink()


def take_snapshots(run: Path, fork: Path, step: int) -> None:
    """Give a fork the snapshots up to `step` of the run that it comes from: as further names of the same files, or as
    copies where the file system has no such names."""
    for profile, path in find_snapshots(run).items():
        if profile.step <= step:
            (fork / FOLDER).mkdir(exist_ok=True)
            copy = fork / FOLDER / path.name
            try:
                os.link(path, copy)
            except OSError:
                shutil.copy2(path, copy)


def load_average(model: nn.Module, run: Path, wanted: Profile) -> float:
    """Load the average of any length, at a step that has snapshots, into a model of the run's network.

    Returns the relative error of its shares, see `combine`. ValueError for a step without snapshots and for a
    damaged file.
    """
    found = {profile: path for profile, path in find_snapshots(run).items() if profile.step <= wanted.step}
    if wanted.step not in (steps := snapshot_steps(run)):
        raise ValueError(
            f"step={wanted.step}: {run / FOLDER} has no snapshots of this step; it has {', '.join(map(str, steps))}"
        )
    coefficients, error = combine(list(found), wanted)
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in model.state_dict().items()}
    for path, coefficient in zip(found.values(), coefficients, strict=True):
        with damaged(path, f"{path} is damaged", "remove it to make the average without it"):
            weights = load_file(path)
            if {name: x.shape for name, x in weights.items()} != {name: x.shape for name, x in total.items()}:
                raise ValueError("it holds other tensors than the network")
        for name, value in weights.items():
            total[name] += float(coefficient) * value.double()
    model.load_state_dict(total)
    return error
