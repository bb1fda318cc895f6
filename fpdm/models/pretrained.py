"""Open a folder or Hub repository written by `save_pretrained`, of either family."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fpdm.models.dit import Denoiser
from fpdm.models.sizes import class_of

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS_FILE}.index.json"  # there when the weights are in several files


def load_pretrained(source: str | Path) -> Denoiser:
    """Model in eval mode, on the CPU, from a local folder or a Hub id.

    The architecture comes from its config.json. Raises ValueError if the weights do not
    fit that architecture, FileNotFoundError if there is nothing to open.
    """
    folder = resolve_folder(source)
    config = json.loads((folder / CONFIG_FILE).read_text())
    try:
        model = class_of(config)(**config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    load_weights(model, folder)
    return model.eval()


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of such a folder into a model, on any device and in any precision.

    ValueError if the file is damaged or does not fit the model.
    """
    weights = {}
    for path in weight_files(folder):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); use another checkpoint") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} holds weights of another architecture: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that it was split into."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS_FILE]
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    return [folder / name for name in sorted(set(listed.values()))]


def resolve_folder(source: str | Path) -> Path:
    """The local folder that holds config.json and model.safetensors; downloads a Hub id."""
    folder = Path(source)
    if not folder.exists():
        try:
            folder = Path(snapshot_download(str(source)))
        except (HFValidationError, OSError) as error:
            raise FileNotFoundError(
                f"{source}: no such folder, and not a Hub repository that can be reached"
            ) from error
    for path in (folder / CONFIG_FILE, *weight_files(folder)):
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no {path.name}, so not a folder that save_pretrained wrote")
    return folder
