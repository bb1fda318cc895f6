"""Weights of networks by others, for features of images: no code in a file is run, and a download is checked."""

import hashlib
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.hub import load_state_dict_from_url

from fpdm.damage import check_memory, damaged, reason


def read_weights(path: str, what: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one of torch.

    what: the setting, for errors. FileNotFoundError if there is no such file, ValueError if it holds anything else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} weights {path}: no such file")
    with damaged(path, f"{what} weights {path}: no file of weights"):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return _checked(torch.load(path, map_location="cpu", weights_only=True))


def download_weights(url: str, what: str) -> dict[str, Tensor]:
    """The state dict at an address whose last part ends with the begin of its SHA-256; kept in torch.hub's cache.

    what: the setting, for errors. FileNotFoundError if it cannot be downloaded. ValueError, and nothing is kept, if
    what comes has another hash.
    """
    try:
        with redirect_stdout(sys.stderr):
            return _checked(load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True))
    except OSError as error:
        raise FileNotFoundError(
            f"{what} weights could not be downloaded; give a local copy with --{what} PATH, "
            "or use --features cnn, which needs no weights"
        ) from error
    except Exception as error:
        check_memory(url, error)
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        raise ValueError(
            f"{what} weights from {url}: damaged ({reason(error)}); remove {cache} if it is there, and "
            f"run again, or give a local copy with --{what} PATH"
        ) from error


def as_file(state: dict[str, Tensor]) -> io.BytesIO:
    """A state dict as a file in memory, for libraries that would unpickle the user's own."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def _checked(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict of tensors")
    return dict(content)


def weights_key(path: str | None, default: str) -> str:
    """Identifies an extractor's weights: a hash of the file, or `default` for downloaded weights."""
    if path is None:
        return default
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
