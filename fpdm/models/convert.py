"""Weights of the published programs, under their parameter names, into our models."""

import re

import torch
from torch import Tensor

from fpdm.models.dit import DiT
from fpdm.models.fixed_point_dit import FixedPointDiT

POSITIONS = "pos_embed"  # a buffer that the constructor computes; a parameter in the published models
MIX = "block_fixed_point_projection_fc1"  # W_1 and b_1 of Eq. 3 in one piece: ours is its two halves
FPDM_NAMES = (
    (r"^blocks_pre\.", "pre_blocks."),
    (r"^blocks_post\.", "post_blocks."),
    (r"^block_pre_projection\.", "implicit.injection."),
    (r"^block_fixed_point_projection_fc2\.", "implicit.mix_out."),
    (r"^block_fixed_point\.", "implicit.block."),
)


def from_published(state_dict: dict[str, Tensor], **config) -> DiT | FixedPointDiT:
    """Model in eval mode from a published DiT or FPDM state dict.

    The family is read from the parameter names; `config` is the rest of the constructor's
    arguments (width, heads, depths, classes...). Raises ValueError listing every name that
    is unknown or missing and every shape that does not fit.
    """
    is_fpdm = any(name.startswith("block_fixed_point") for name in state_dict)
    model = (FixedPointDiT if is_fpdm else DiT)(**config)
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
            weights["implicit.mix_h.weight"] = value[:, :width].contiguous()
            weights["implicit.mix_u.weight"] = value[:, width:].contiguous()
        elif name == f"{MIX}.bias":
            weights["implicit.mix_u.bias"] = value
        else:
            for pattern, ours in FPDM_NAMES:
                name = re.sub(pattern, ours, name)
            weights[name] = value
    return weights


def _published_name(name: str, is_fpdm: bool) -> str:
    if not is_fpdm:
        return name
    name = re.sub(r"^implicit\.mix_[hu]\.", f"{MIX}.", name)
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
