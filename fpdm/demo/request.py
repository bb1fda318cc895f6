"""What the page asks for: the values of its controls, checked and bounded, as sampling settings."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from fpdm.config import check_choice, check_range, limits
from fpdm.demo.models import Offered
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for
from fpdm.sampling.settings import SamplingConfig

RANDOM = "random"  # of every class
LONGEST = 100  # characters of a wrong value that are repeated
# Values other than the default. A setting of which a model, or the rest of the settings, accepts none is not available.
OTHERS = {
    "iterations": (2,),
    "allocation": tuple(name for name in ALLOCATIONS if name != SamplingConfig.allocation),
    "reuse": (True,),
    "reuse_weight": (0.5,),
    "cfg_scale": (2.0,),
}  # fmt: skip
DEFAULTS = {field.name: field.default for field in fields(SamplingConfig) if field.default is not MISSING}


class Bounds(NamedTuple):
    """The most that one request may ask for: images, block passes per image, iterations per timestep."""

    images: int
    budget: int
    iterations: int


class Shared(NamedTuple):
    """What the two sides of a comparison have in common. label: RANDOM, or a label of the model."""

    label: str | int
    images: int
    seed: int
    budget: int


class Way(NamedTuple):
    """How one side samples: the name of a model, and settings by the names that a SamplingConfig has for them."""

    model: str
    iterations: int
    allocation: str
    reuse: bool
    reuse_weight: float
    sampler: str
    cfg_scale: float


class Asked(NamedTuple):
    """A checked request for one side."""

    offered: Offered
    config: SamplingConfig
    images: int


def unavailable(source: Source, iterations: int, reuse: bool) -> dict[str, str]:
    """The settings that have no effect or are refused, with the reason: of this model, these iterations, this reuse."""
    found = {}
    for name, values in OTHERS.items():
        chosen = {"iterations": iterations, "reuse": reuse} if source.iterative else {}
        reasons = [_refusal(source, {"steps": 2, **chosen, name: value}) for value in values]
        if all(reasons):
            found[name] = reasons[0]
    return found


def _refusal(source: Source, settings: dict) -> str | None:
    """Why these settings are refused; None if they are not."""
    try:
        plan_for(source, SamplingConfig(**settings))
    except ValueError as error:
        return str(error).partition(": ")[2] or str(error)
    return None


def ask(models: Mapping[str, Offered], shared: Shared, way: Way, bounds: Bounds) -> Asked:
    """The request of one side; one ValueError for a value that is wrong or above the bounds.

    A control that is greyed out has no say: its setting is left at the default.
    """
    check_choice("model", _short(way.model), models)
    offered = models[way.model]
    images = whole("images", shared.images, 1, bounds.images)
    budget = whole("budget", shared.budget, 1, bounds.budget)
    settings = {
        "iterations": whole("iterations", way.iterations, 1, bounds.iterations),
        "allocation": _short(way.allocation),
        "reuse": truth("reuse", way.reuse),
        "reuse_weight": number("reuse_weight", way.reuse_weight),
        "sampler": _short(way.sampler),
        "cfg_scale": number("cfg_scale", way.cfg_scale),
    }
    for name in unavailable(offered.source, settings["iterations"], settings["reuse"]):
        settings[name] = DEFAULTS[name]
    if settings["reuse"] == offered.source.reuse:
        settings["reuse"] = None  # as the model says
    seed = whole("seed", shared.seed, 0, limits.SEED)
    label = None if shared.label == RANDOM else [whole("class", shared.label, 0, offered.source.num_classes - 1)]
    config = SamplingConfig(budget=budget, seed=seed, classes=label, **settings)
    plan_for(offered.source, config)  # refuses what this model cannot do
    return Asked(offered, config, images)


def number(name: str, value: Any) -> float:
    """A number from the page; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}={repr(value)[:LONGEST]}: expected a number")
    return value


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from the page, from low to high; ValueError for anything else."""
    if number(name, value) != int(value):
        raise ValueError(f"{name}={value}: expected a whole number")
    check_range(low, high, **{name: int(value)})
    return int(value)


def truth(name: str, value: Any) -> bool:
    """True or false from the page; ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={repr(value)[:LONGEST]}: expected true or false")
    return value


def _short(value: Any) -> str:
    """A name from the page, or the beginning of what cannot be one."""
    return value if isinstance(value, str) and len(value) <= LONGEST else repr(value)[:LONGEST]
