"""What sampling needs besides the network, as files beside its weights: sampling.json and, for a model that is
conditioned on attributes, attributes.safetensors."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_type_hints

from safetensors.numpy import load_file, save_file

from fpdm.config import DiffusionConfig
from fpdm.damage import damaged
from fpdm.data.attributes import Attributes
from fpdm.files import replaced, write_atomically
from fpdm.processes import make_process
from fpdm.records import check_fields, read_fields

SAMPLING, ATTRIBUTES = "sampling.json", "attributes.safetensors"
VECTORS, NAMES = "vectors", "attribute_names"


@dataclass
class SamplingFacts:
    """sampling.json. diffusion: settings of the process; latents: content of the store it was trained on; weights:
    which of the averages an exported model is; attribute_names: of what it is conditioned on, if not on a class."""

    diffusion: dict
    codec: str | None
    codec_fingerprint: str | None
    class_names: list[str]
    latents: str | None
    weights: str = "model"
    attribute_names: list[str] = field(default_factory=list)


def write_facts(folder: Path, facts: dict) -> None:
    """Write the facts to a folder. Their `attributes`, if there are any, are Attributes: sampling.json has the names,
    the other file the vectors."""
    attributes = facts.get("attributes")
    named = {name: value for name, value in facts.items() if name != "attributes"}
    write_atomically(folder / SAMPLING, json.dumps(named | ({NAMES: attributes.names} if attributes else {}), indent=1))
    if attributes:
        with replaced(folder / ATTRIBUTES) as partial:
            save_file({VECTORS: attributes.vectors}, partial)
            partial.chmod((folder / SAMPLING).stat().st_mode)  # it is written readable only by its owner


def read_facts(folder: Path) -> dict:
    """The facts that `write_facts` wrote; ValueError if a file is missing or damaged."""
    path = folder / SAMPLING
    facts = read_fields(path, SamplingFacts)
    kinds = get_type_hints(DiffusionConfig)
    check_fields(f"{path}: diffusion", facts["diffusion"], kinds, [])
    if unknown := sorted(facts["diffusion"].keys() - kinds.keys()):
        raise ValueError(f"{path}: diffusion.{unknown[0]}: no such setting; restore the file")
    try:
        make_process(asdict(DiffusionConfig(**facts["diffusion"])))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if names := facts.pop(NAMES, None):
        path, remedy = folder / ATTRIBUTES, "sampling draws attributes from it; copy it from where the weights are from"
        with damaged(path, f"{path} is missing or damaged", remedy):
            vectors = load_file(path)[VECTORS]
        facts["attributes"] = Attributes(names, vectors)
    return facts
