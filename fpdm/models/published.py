"""Checkpoint files of the published DiT and FPDM programs: read them, and tell the architecture from the weights."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fpdm.models.sizes import SIZES

WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before names
EMA, MODEL = "ema", "model"


def read_published(path: str | Path, weights: str = EMA) -> dict[str, Tensor]:
    """The state dict in a .pt file: bare, or a training checkpoint's `ema` or `model`. No code in the file is run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"source {path}: no such file; give the .pt file of a published DiT or FPDM")
    try:
        # argparse's namespace, which training checkpoints carry, is the one thing besides tensors that is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: the unpickler follows whatever the bytes say
        kind = type(error).__name__
        raise ValueError(f"source {path}: not a checkpoint of tensors and plain containers ({kind})") from error
    if not isinstance(content, dict):
        raise ValueError(f"source {path}: holds a {type(content).__name__}, not a state dict")
    if any(name in content for name in (EMA, MODEL)):
        if weights not in content:
            raise ValueError(f"source {path}: has no {weights!r} weights, only {', '.join(map(str, content))}")
        content = content[weights]
    return {_unwrapped(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def infer_config(state: dict[str, Tensor], num_heads: int | None = None) -> dict:
    """The constructor's arguments that a published state dict stands for.

    num_heads: for widths that are none of the named sizes'. The label table is taken to
    have a row for the null label, as every model trained with label dropout has.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[-2]
        out = state["final_layer.linear.weight"].shape[0] // patch**2
        rows = state["y_embedder.embedding_table.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"not the state dict of a DiT or an FPDM: it has no {error}") from error
    heads = num_heads or next((size.num_heads for size in SIZES.values() if size.hidden_size == width), None)
    if heads is None:
        raise ValueError(f"width {width} is that of no named size, so the weights do not tell num_heads: give it")
    config = {
        "input_size": patch * round(tokens**0.5),
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "num_heads": heads,
        "num_classes": rows - 1,
        "learn_sigma": out == 2 * channels,
    }
    if any(name.startswith("block_fixed_point") for name in state):
        return config | {"pre_depth": _depth(state, "blocks_pre"), "post_depth": _depth(state, "blocks_post")}
    return config | {"depth": _depth(state, "blocks")}


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})
