"""What sampling needs besides the network, as files beside its weights: sampling.json and, for a model that is
conditioned on attributes, attributes.safetensors."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fpdm.data.attributes import Attributes
from fpdm.files import replaced, write_atomically

SAMPLING, ATTRIBUTES = "sampling.json", "attributes.safetensors"
VECTORS, NAMES = "vectors", "attribute_names"


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
    """The facts that `write_facts` wrote; ValueError if the attributes are missing or damaged."""
    facts = json.loads((folder / SAMPLING).read_text())
    if names := facts.pop(NAMES, None):
        try:
            vectors = load_file(folder / ATTRIBUTES)[VECTORS]
        except (FileNotFoundError, SafetensorError) as error:
            raise ValueError(
                f"{folder / ATTRIBUTES} is missing or damaged ({error}): sampling draws attributes from it; copy it "
                "from where the weights are from"
            ) from error
        facts["attributes"] = Attributes(names, vectors)
    return facts
