"""The models that the page offers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fpdm.devices import SAMPLING_PATIENCE, process_state
from fpdm.loading import load_checkpoint, open_source
from fpdm.sampling.call import Source

ASSETS = Path(__file__).parents[2] / "assets"
FACTS = "sampling.json"  # in the folder of an exported model


class Offered(NamedTuple):
    """A model that can be chosen.

    name: on the page. ckpt: as it was given, for the command line. class_names: one for each label; none if it is
    conditioned on attributes, which are then those of random training images.
    """

    name: str
    ckpt: str
    source: Source
    class_names: list[str]


def released() -> list[str]:
    """The models in assets/ of a clone, as paths from the clone's folder."""
    return sorted(f"{ASSETS.name}/{path.parent.name}" for path in ASSETS.glob(f"*/{FACTS}"))


def open_models(checkpoints: Sequence[str]) -> dict[str, Offered]:
    """The models by name: the last part of the checkpoint's path, or all of it if two would have the same name.

    checkpoints: runs, checkpoints, exported folders or Hub ids; without any, those of `released`. ValueError if
    there is none, or if one of them cannot be opened.
    """
    given = list(dict.fromkeys(checkpoints)) or released()
    if not given:
        raise ValueError(
            "ckpt is not set, and there are no released models in assets/; give a run or an exported model"
        )
    last = [Path(ckpt).name for ckpt in given]
    names = [name if last.count(name) == 1 else ckpt for name, ckpt in zip(last, given, strict=True)]
    return {name: open_one(name, ckpt) for name, ckpt in zip(names, given, strict=True)}


def open_one(name: str, ckpt: str) -> Offered:
    """A model with the names of its classes."""
    place = ckpt if ckpt not in released() else ASSETS.parent / ckpt
    model, facts, _ = load_checkpoint(place)
    source = open_source(model, facts, device=process_state(SAMPLING_PATIENCE).device)
    class_names = (facts.get("class_names") or range(source.num_classes)) if source.attributes is None else []
    return Offered(name, ckpt, source, [str(one) for one in class_names])
