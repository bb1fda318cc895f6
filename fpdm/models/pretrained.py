"""Open a folder or Hub repository written by `save_pretrained`, of either family."""

import math
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import HFValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fpdm.config import check_range, limits
from fpdm.damage import damaged
from fpdm.hub import split_revision
from fpdm.models.dit import Denoiser
from fpdm.models.sizes import class_of
from fpdm.records import check_fields, read_arguments, read_object

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SIZES_ABOVE_0 = ("input_size", "patch_size", "in_channels", "hidden_size", "num_heads")
FEW = 2**20  # parameters that cost little memory
INDEX = f"{WEIGHTS_FILE}.index.json"  # there when the weights are in several files


def load_pretrained(source: str | Path) -> Denoiser:
    """Model in eval mode, on the CPU, from a local folder or a Hub id.

    The architecture comes from its config.json. Raises ValueError if the weights do not
    fit that architecture, FileNotFoundError if there is nothing to open.
    """
    folder = resolve_folder(source)
    path = folder / CONFIG_FILE
    config = read_object(path)
    try:
        family = class_of(config)
        read_arguments(path, family.__init__)
        check_range(0, limits.WIDTH, **{name: value for name, value in config.items() if _is_size(name, value)})
        check_range(1, limits.WIDTH, **{name: config[name] for name in SIZES_ABOVE_0 if name in config})
        check_range(0, limits.DEPTH, **{name: value for name, value in config.items() if name.endswith("depth")})
        check_range(0, limits.CLASSES, num_classes=config.get("num_classes"))
        _check_size(family, config, folder)
        model = family(**config)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    load_weights(model, folder)
    return model.eval()


def _is_size(name: str, value: object) -> bool:
    return name != "num_classes" and isinstance(value, (int, list)) and not isinstance(value, bool)


def _check_size(family: type[Denoiser], config: dict, folder: Path) -> None:
    """ValueError if the network of the config is far larger than its files: it would take memory in vain.

    Smaller differences are left to `load_weights`, which names the weights.
    """
    with torch.device("meta"):
        parameters = sum(value.numel() for value in family(**config).parameters())
    stored = sum(_numbers(path) for path in weight_files(folder))
    if parameters > 2 * stored + FEW:
        raise ValueError(f"{parameters:,d} parameters, but the weights are {stored:,d}: those of another architecture")


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds, from its header; ValueError if it is damaged."""
    with _damaged(path), safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _damaged(path: Path) -> AbstractContextManager[None]:
    return damaged(path, f"{path} is damaged", "use another checkpoint")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of such a folder into a model, on any device and in any precision.

    ValueError if the file is damaged or does not fit the model.
    """
    weights = {}
    for path in weight_files(folder):
        with _damaged(path):
            weights |= load_file(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} holds weights of another architecture: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that it was split into."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS_FILE]
    found = read_object(folder / INDEX)
    check_fields(folder / INDEX, found, {"weight_map": dict[str, str]}, ["weight_map"])
    names = sorted(set(found["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{folder / INDEX}: weight_map names a file outside of the folder; restore the file")
    return [folder / name for name in names]


def resolve_folder(source: str | Path) -> Path:
    """The local folder that holds config.json and model.safetensors; downloads a Hub id, at its @revision if given."""
    folder = Path(source)
    if not folder.exists():
        try:
            repository, revision = split_revision(str(source))
            folder = Path(snapshot_download(repository, revision=revision))
        except (HFValidationError, OSError) as error:
            raise FileNotFoundError(
                f"{source}: no such folder, and not a Hub repository that can be reached"
            ) from error
    for path in (folder / CONFIG_FILE, *weight_files(folder)):
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no {path.name}, so not a folder that save_pretrained wrote")
    return folder
