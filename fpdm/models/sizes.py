"""Models by name: `DiT-XL/2`, `FPDM-XL/2` and the other sizes and patches."""

import re
from typing import NamedTuple

from fpdm.models.dit import DiT
from fpdm.models.fixed_point_dit import FixedPointDiT


class Size(NamedTuple):
    hidden_size: int
    num_heads: int
    depth: int  # of the DiT; an FPDM of the same size has the same width and heads


# S to XL are DiT's (Peebles & Xie, Tab. 1); XS is ours, for 8x8 latents on a laptop.
SIZES = {
    "XS": Size(128, 4, 12),
    "S": Size(384, 6, 12),
    "B": Size(768, 12, 12),
    "L": Size(1024, 16, 24),
    "XL": Size(1152, 16, 28),
}
PATCHES = (2, 4, 8)
FAMILIES = {"DiT": DiT, "FPDM": FixedPointDiT}


def model_config(name: str, **overrides) -> tuple[type[DiT] | type[FixedPointDiT], dict]:
    """The class that `name` stands for and its constructor's arguments, `overrides` applied."""
    match = re.fullmatch(r"(\w+)-(\w+)/(\d+)", name)
    known = match and match[1] in FAMILIES and match[2] in SIZES and int(match[3]) in PATCHES
    if not known:
        raise ValueError(
            f"model name={name!r}: expected FAMILY-SIZE/PATCH with family {'|'.join(FAMILIES)}, "
            f"size {'|'.join(SIZES)} and patch {'|'.join(map(str, PATCHES))}, as in 'FPDM-XL/2'"
        )
    family, size = match[1], SIZES[match[2]]
    config = {"patch_size": int(match[3]), "hidden_size": size.hidden_size, "num_heads": size.num_heads}
    if family == "DiT":
        config["depth"] = size.depth
    return FAMILIES[family], config | overrides


def build_model(name: str, **overrides) -> DiT | FixedPointDiT:
    """`build_model("FPDM-XL/2", num_classes=1000, pre_depth=2)`: a freshly initialised model.

    `overrides` are arguments of the family's constructor; one it does not have is a TypeError.
    """
    cls, config = model_config(name, **overrides)
    return cls(**config)
