"""Checkpoints of the published DiT and FPDM programs: read the files, infer the architecture from the weights, and
load the weights, renamed, into our models."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from fpdm.block_options import PAPER
from fpdm.damage import damaged
from fpdm.models.dit import DiT
from fpdm.models.fixed_point_dit import FixedPointDiT
from fpdm.models.sizes import SIZES

WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DataParallel and torch.compile add to names
EMA_WEIGHTS, MODEL_WEIGHTS = "ema", "model"  # names of the two sets of weights in a training checkpoint
POSITIONS = "pos_embed"  # here a buffer that the constructor computes; a parameter in the published models
MIX = "block_fixed_point_projection_fc1"  # W_1 and b_1 of Eq. 3 as one map; here it is two halves
FPDM_NAMES = (
    (r"^blocks_pre\.", "pre_blocks."),
    (r"^blocks_post\.", "post_blocks."),
    (r"^block_pre_projection\.", "implicit.injection.project."),
    (r"^block_fixed_point_projection_fc2\.", "implicit.injection.mix_out."),
    (r"^block_fixed_point\.", "implicit.blocks.0."),
)


def read_published(path: str | Path, weights: str = EMA_WEIGHTS) -> dict[str, Tensor]:
    """The state dict in a .pt file: bare, or a training checkpoint's `ema` or `model`. No code in the file is run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"source {path}: no such file; give the .pt file of a published DiT, SiT or FPDM")
    # Training checkpoints also hold an argparse namespace; no other class is allowed besides tensors.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with damaged(path, f"source {path}: not a checkpoint of tensors and plain containers"), allowed:
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"source {path}: holds a {type(content).__name__}, not a state dict")
    if any(name in content for name in (EMA_WEIGHTS, MODEL_WEIGHTS)):
        if weights not in content:
            raise ValueError(f"source {path}: has no {weights!r} weights, only {', '.join(map(str, content))}")
        content = content[weights]
    return {_unwrapped(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def infer_config(state: dict[str, Tensor], num_heads: int | None = None) -> dict:
    """The constructor's arguments for a published state dict.

    num_heads: needed for widths other than the named sizes'. The label table is assumed to
    have a row for the null label, as in every model trained with label dropout.
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
        raise ValueError(f"width {width} is not that of a named size, so num_heads cannot be inferred; give num_heads")
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


def from_published(state_dict: dict[str, Tensor], **config) -> DiT | FixedPointDiT:
    """Model in eval mode from a published DiT or FPDM state dict.

    The family is read from the parameter names; `config` is the rest of the constructor's
    arguments (width, heads, depths, classes...). Raises ValueError listing every name that
    is unknown or missing and every shape that does not fit, and for blocks that are not DiT's.
    """
    is_fpdm = any(name.startswith("block_fixed_point") for name in state_dict)
    model = (FixedPointDiT if is_fpdm else DiT)(**config)
    for option in fields(PAPER):
        value, default = getattr(model.options, option.name), getattr(PAPER, option.name)
        if value != default:
            raise ValueError(f"{option.name}={value}: the published models have {default}; leave {option.name} out")
    expected = {_published_name(name, is_fpdm) for name in model.state_dict()} | {POSITIONS}
    unknown, missing = sorted(set(state_dict) - expected), sorted(expected - set(state_dict))
    if unknown or missing:
        raise ValueError(
            f"not the state dict of a {type(model).__name__} with this config: "
            f"unknown names {unknown or 'none'}, missing names {missing or 'none'}"
        )
    weights = _rename(state_dict) if is_fpdm else dict(state_dict)
    _check_positions(weights.pop(POSITIONS), model.pos_embed)
    _check_shapes(weights, model.state_dict())
    model.load_state_dict(weights)
    return model.eval()


def _rename(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, value in state_dict.items():
        if name == f"{MIX}.weight":
            width = value.shape[1] // 2
            weights["implicit.injection.mix_h.weight"] = value[:, :width].contiguous()
            weights["implicit.injection.mix_u.weight"] = value[:, width:].contiguous()
        elif name == f"{MIX}.bias":
            weights["implicit.injection.mix_u.bias"] = value
        else:
            for pattern, ours in FPDM_NAMES:
                name = re.sub(pattern, ours, name)
            weights[name] = value
    return weights


def _published_name(name: str, is_fpdm: bool) -> str:
    if not is_fpdm:
        return name
    name = re.sub(r"^implicit\.injection\.mix_[hu]\.", f"{MIX}.", name)
    for pattern, ours in FPDM_NAMES:
        if name.startswith(ours):
            return pattern.removeprefix("^").replace("\\.", ".") + name.removeprefix(ours)
    return name


def _check_positions(published: Tensor, ours: Tensor) -> None:
    if published.shape != ours.shape or not torch.allclose(published.float(), ours, atol=1e-5):
        raise ValueError(
            f"{POSITIONS} with shape {tuple(published.shape)} is not the sin-cos table {tuple(ours.shape)} of this "
            "config: check input_size, patch_size and hidden_size"
        )


def _check_shapes(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    wrong = [
        f"{name}: {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if weights[name].shape != value.shape
    ]
    if wrong:
        raise ValueError("shapes that do not fit this config: " + "; ".join(wrong))
