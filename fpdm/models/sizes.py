"""Models by name: `DiT-XL/2`, `FPDM-XL/2` and the other sizes and patches."""

import re
from inspect import signature
from typing import NamedTuple

from fpdm.models.dit import Denoiser, DiT
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


def model_config(name: str, **overrides) -> tuple[type[Denoiser], dict]:
    """The class of the model `name` and its constructor's arguments, with `overrides` applied."""
    match = re.fullmatch(r"(\w+)-(\w+)/(\d+)", name)
    known = match and match[1] in FAMILIES and match[2] in SIZES and int(match[3]) in PATCHES
    if not known:
        raise ValueError(
            f"model name={name!r}: expected FAMILY-SIZE/PATCH with family {'|'.join(FAMILIES)}, "
            f"size {'|'.join(SIZES)} and patch {'|'.join(map(str, PATCHES))}, as in 'FPDM-XL/2'"
        )
    cls, size = FAMILIES[match[1]], SIZES[match[2]]
    known = settings_of(cls)
    for other, theirs in FAMILIES.items():
        if theirs is not cls and settings_of(theirs) == known:
            raise ValueError(
                f"model name={name!r}: {match[1]} and {other} take the same arguments, so a saved model does not tell "
                "which of them it is; give one of them an argument of its own"
            )
    for setting in overrides.keys() - known:
        raise ValueError(f"model.{setting}={overrides[setting]}: {name} has no such setting; remove it")
    config = {"patch_size": int(match[3]), **{name: value for name, value in size._asdict().items() if name in known}}
    return cls, config | overrides


def settings_of(cls: type[Denoiser]) -> set[str]:
    """The arguments of a family's constructor, which are the keys of its config.json."""
    return set(signature(cls.__init__).parameters) - {"self"}


def class_of(config: dict) -> type[Denoiser]:
    """The family whose constructor takes these arguments: exactly, or these and others; ValueError if none does."""
    taking = [cls for cls in FAMILIES.values() if config.keys() <= settings_of(cls)]
    exactly = [cls for cls in taking if config.keys() == settings_of(cls)]
    if taking:
        return (exactly or taking)[0]
    nearest = min(FAMILIES.values(), key=lambda cls: len(config.keys() - settings_of(cls)))
    unknown = ", ".join(sorted(config.keys() - settings_of(nearest)))
    raise ValueError(f"not the config of a {' or '.join(FAMILIES)}: {nearest.__name__} has no {unknown}")


def build_model(name: str, **overrides) -> Denoiser:
    """`build_model("FPDM-XL/2", num_classes=1000, pre_depth=2)`: a freshly initialised model.

    `overrides` are arguments of the family's constructor; ValueError for an unknown one.
    """
    cls, config = model_config(name, **overrides)
    return cls(**config)
