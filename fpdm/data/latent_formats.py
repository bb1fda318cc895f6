"""Folders of latents that other extractors published, read a few at a time: .npy pairs and safetensors shards.

N latents in all, flips 1 (as is) or 2 (as is, mirrored), C channels of h x w.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from fpdm.damage import check_memory, damaged, reason

STATS = "latents_stats.pt"
MAX_CLASSES = 1_000_000  # larger numbers are not labels
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors names them


class Layout(Protocol):
    """files: in order; starts: index of the first latent of each file, then N; labels (N,) int64; shape (C, h, w);
    raw: not yet normalised."""

    files: list[Path]
    starts: list[int]
    labels: np.ndarray
    shape: list[int]
    flips: int
    raw: bool

    def read(self, file: int, first: int, last: int) -> Tensor:
        """Latents first..last-1 of a file: (last - first, flips, C, h, w) float32."""


class NpyPairs:
    """`<name>_features/` and `<name>_labels/`: arrays (C, h, w) with one label, or (B, C, h, w) with labels (B,).

    Files are paired by name, in numeric order if the names are numbers. The latents are scaled samples.
    """

    flips, raw = 1, False

    def __init__(self, root: Path, name: str | None):
        features, labels = _npy_folders(root, name)
        self.files = _paired(features, labels)
        found = []
        for path in tqdm(self.files, "labels", unit="file"):
            found.append(_checked_labels(labels / path.name, _npy(labels / path.name, None)))
        self.starts, self.labels = _starts(found), np.concatenate(found)
        self.shape = list(_npy(self.files[0]).shape[-3:])

    def read(self, file: int, first: int, last: int) -> Tensor:
        array, count = _npy(self.files[file]), self.starts[file + 1] - self.starts[file]
        array = array[None] if array.ndim == 3 else array
        floats = array.dtype in (np.float16, np.float32, np.float64)
        _check_latents(self.files[file], list(array.shape), floats, [count, *self.shape])
        return torch.from_numpy(np.array(array[first:last])).float()[:, None]


class SafetensorsShards:
    """*.safetensors with `latents` (N, C, h, w), `labels` (N,) and optionally `latents_flip`: unscaled samples."""

    raw = True

    def __init__(self, files: list[Path]):
        self.files = files
        found = []
        for path in tqdm(files, "labels", unit="file"):
            with _open(path) as file:
                if absent := {"latents", "labels"} - set(file.keys()):
                    raise ValueError(f"{path}: has no tensor {absent.pop()!r}; the layout needs latents and labels")
                found.append(_checked_labels(path, file.get_tensor("labels").numpy()))
        with _open(files[0]) as file:
            self.flips = 2 if "latents_flip" in file.keys() else 1  # noqa: SIM118
            self.shape = list(file.get_slice("latents").get_shape()[1:])
        self.starts, self.labels = _starts(found), np.concatenate(found)

    def read(self, file: int, first: int, last: int) -> Tensor:
        path, count = self.files[file], self.starts[file + 1] - self.starts[file]
        with _open(path) as opened:
            names = [name for name in ("latents", "latents_flip") if name in opened.keys()]  # noqa: SIM118
            if len(names) != self.flips:
                raise ValueError(f"{path}: some files have latents_flip and some not; extract them all the same way")
            views = [opened.get_slice(name) for name in names]
            for view in views:
                _check_latents(path, view.get_shape(), view.get_dtype() in FLOATS, [count, *self.shape])
            return torch.stack([view[first:last].float() for view in views], dim=1)


def open_layout(source: str | Path, name: str | None = None) -> Layout:
    """The latents in the folder `source`. name: which pair of folders, if there are several."""
    root = Path(source)
    if not root.is_dir():
        raise FileNotFoundError(f"source {source}: no such folder")
    shards, pairs = sorted(root.glob("*.safetensors")), sorted(root.glob("*_features"))
    if shards and pairs:
        raise ValueError(f"source {source}: holds both {shards[0].name} and {pairs[0].name}; move one of them away")
    if shards and name:
        raise ValueError(f"name={name}: only for .npy folders, {source} holds safetensors; remove it")
    if not shards and not pairs:
        raise ValueError(
            f"source {source}: neither <name>_features and <name>_labels with .npy files, nor *.safetensors in it"
        )
    return SafetensorsShards(shards) if shards else NpyPairs(root, name)


def load_stats(source: str | Path) -> tuple[Tensor, Tensor] | None:
    """Mean and std (1, C, 1, 1) that the raw latents are normalised with, if the folder has them."""
    path = Path(source) / STATS
    if not path.exists():
        return None
    with damaged(path, f"{path}: not a dict of tensors mean and std", "replace or remove it"):
        stats = torch.load(path, map_location="cpu", weights_only=True)
        mean, std = (stats[key].float().reshape(1, -1, 1, 1) for key in ("mean", "std"))
    if mean.shape != std.shape or not (mean.isfinite() & std.isfinite() & (std > 0)).all():
        raise ValueError(f"{path}: mean and std must be finite, one of each per channel, std positive; replace it")
    return mean, std


def _npy_folders(root: Path, name: str | None) -> tuple[Path, Path]:
    names = [path.name.removesuffix("_features") for path in sorted(root.glob("*_features"))]
    if name is None and len(names) > 1:
        raise ValueError(f"source {root}: holds several sets, {', '.join(names)}; choose one with --name")
    name = names[0] if name is None else name
    folders = root / f"{name}_features", root / f"{name}_labels"
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; features and labels come in pairs of folders")
    return folders


def _paired(features: Path, labels: Path) -> list[Path]:
    """The files of `features`, 2.npy before 10.npy; each must have one of the same name in `labels`."""
    ours, theirs = ({path.name for path in folder.glob("*.npy")} for folder in (features, labels))
    if lonely := sorted(ours ^ theirs):
        here, there = (features, labels) if lonely[0] in ours else (labels, features)
        raise ValueError(f"{here / lonely[0]}: no file of that name in {there}; add it or remove this one")
    if not ours:
        raise ValueError(f"{features}: no .npy file in it")
    numbered = sorted((name for name in ours if name[:-4].isdigit()), key=lambda name: (int(name[:-4]), name))
    return [features / name for name in numbered + sorted(ours - set(numbered))]


def _npy(path: Path, mode: str | None = "r") -> np.ndarray:
    """The array in a file; mode r maps it, None reads it, which is faster for few values."""
    with damaged(path, f"{path}: not a complete .npy file", "extract it again"):
        return np.load(path, mmap_mode=mode)


@contextmanager
def _open(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except ValueError:  # of what is in a file that is whole
        raise
    except Exception as error:  # safetensors has an error of its own, but not for all damage
        check_memory(path, error)
        raise ValueError(f"{path}: not a complete safetensors file ({reason(error)}); extract it again") from error


def _checked_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    """Labels (B,) int64 from an array (B,) or a single number."""
    if labels.dtype.kind not in "iu" or labels.ndim > 1 or not labels.size:
        raise ValueError(f"{path}: labels are {labels.dtype} {labels.shape}; must be integers, one per latent: (B,)")
    labels = labels.reshape(-1).astype(np.int64)
    wrong = labels[(labels < 0) | (labels >= MAX_CLASSES)]
    if len(wrong):
        raise ValueError(f"{path}: label {wrong[0]}; classes are 0, 1, ..., below {MAX_CLASSES:,d}")
    return labels


def _check_latents(path: Path, shape: list[int], floats: bool, expected: list[int]) -> None:
    if not floats:
        raise ValueError(f"{path}: latents must be floating-point numbers of 16, 32 or 64 bits; extract them again")
    if list(shape) != expected:
        raise ValueError(f"{path}: latents {tuple(shape)}, but the labels and the first file need {tuple(expected)}")


def _starts(labels: list[np.ndarray]) -> list[int]:
    return [0, *np.cumsum([len(part) for part in labels]).tolist()]
