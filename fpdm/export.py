"""An exported model: a folder, local or on the Hub, with all that sampling needs.

config.json, model.safetensors    as from_pretrained opens them
sampling.json                     diffusion, class names, what it was trained on
attributes.safetensors            vectors of attributes that sampling draws from, if the model is conditioned on them
vae/                              the autoencoder, if it is included
README.md                         model card
"""

import json
from pathlib import Path

from huggingface_hub import create_repo, save_torch_state_dict, upload_folder

from fpdm.data.codec import Codec, VAECodec
from fpdm.files import new_folder, write_atomically
from fpdm.models import Denoiser
from fpdm.models.card import model_card
from fpdm.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from fpdm.processes import make_process
from fpdm.training.facts import SAMPLING, write_facts

VAE = "vae"
SHARD = "14MB"


def export_model(
    folder: str | Path,
    model: Denoiser,
    facts: dict,
    codec: Codec | None,
    history: dict[str, str],
    half: bool = False,
    notes: str | None = None,
) -> None:
    """Write a new folder; after a kill there is the whole folder or none. codec: a codec to include; None to leave it
    where it is.

    history: lines for the card's table, such as the number of training steps. half: weights rounded to float16,
    in files of at most SHARD. notes: Markdown for the card below its table; an example if not given.
    """
    with new_folder(Path(folder)) as partial:
        write_export(partial, model, facts, codec, history, half, notes)


def write_export(
    folder: Path, model: Denoiser, facts: dict, codec: Codec | None, history: dict[str, str], half: bool = False,
    notes: str | None = None,
) -> None:  # fmt: skip
    """The files of `export_model`, into an empty folder."""
    model.save_pretrained(folder)
    if half:
        (folder / WEIGHTS_FILE).unlink()
        rounded = {name: value.half() for name, value in model.state_dict().items()}
        save_torch_state_dict(rounded, folder, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD)
    if isinstance(codec, VAECodec):
        codec.vae.save_pretrained(folder / VAE)
        config = json.loads((folder / VAE / CONFIG_FILE).read_text())
        config.pop("_name_or_path", None)  # its path on this machine
        write_atomically(folder / VAE / CONFIG_FILE, json.dumps(config, indent=1))
        facts = facts | {"codec": VAE}
    write_facts(folder, facts)
    for weights in folder.rglob("*.safetensors"):  # written readable only by their owner
        weights.chmod((folder / SAMPLING).stat().st_mode)
    process = make_process(facts["diffusion"])
    facts_told = {"process": process.kind, "predicts": process.predicts, "VAE": str(facts["codec"]), **history}
    if "attributes" in facts:
        facts_told["attributes"] = ", ".join(facts["attributes"].names)
    if notes is None:
        iterations = " --iterations 4" if model.iterative else ""
        notes = f"Images:\n\n```\nfpdm-sample --ckpt THIS_FOLDER --budget 280{iterations} --num-samples 16\n```"
    model_card(model, model.family, facts_told, notes).save(folder / "README.md")


def locate_codec(folder: Path, facts: dict) -> dict:
    """The facts, with the full path of a VAE that is stored beside the weights."""
    return facts | {"codec": str((folder / VAE).resolve())} if facts["codec"] == VAE else facts


def upload(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload an exported folder to the Hub as `repo_id`, created if needed; returns the URL of the commit."""
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    return str(upload_folder(repo_id=repo_id, folder_path=str(folder), token=token, commit_message="Upload model"))
