"""A model on its own: a folder, local or on the Hub, with all that drawing images needs.

config.json, model.safetensors    as from_pretrained opens them
sampling.json                     diffusion, class names, what it was trained on
vae/                              the autoencoder, if it is to go along
README.md                         model card
"""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from fpdm.data.codec import Codec, VAECodec
from fpdm.files import write_atomically
from fpdm.models import DiT, FixedPointDiT
from fpdm.training.checkpoint import SAMPLING, WEIGHTS

VAE = "vae"


def export_model(
    folder: str | Path, model: DiT | FixedPointDiT, facts: dict, codec: Codec | None, history: dict[str, str]
) -> None:
    """Write the folder. codec: to go along with the model, None to leave it where it is.

    history: lines for the card's table, such as the number of training steps.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"out={folder}: is there already and not empty; choose another folder")
    model.save_pretrained(folder)
    if isinstance(codec, VAECodec):
        codec.vae.save_pretrained(folder / VAE)
        facts = facts | {"codec": VAE}
    write_atomically(folder / SAMPLING, json.dumps(facts, indent=1))
    (folder / WEIGHTS).chmod((folder / SAMPLING).stat().st_mode)
    model_card(model, facts, history).save(folder / "README.md")


def locate_codec(folder: Path, facts: dict) -> dict:
    """The facts with a VAE that lies beside the weights found there."""
    return facts | {"codec": str(folder / VAE)} if facts["codec"] == VAE else facts


def model_card(model: DiT | FixedPointDiT, facts: dict, history: dict[str, str]) -> ModelCard:
    """What the model is, how it was trained, and how images are drawn from it."""
    family = "FPDM" if isinstance(model, FixedPointDiT) else "DiT"
    rows = {
        "family": "fixed point diffusion model" if family == "FPDM" else "diffusion transformer",
        "parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,d}",
        "latents": f"{model.in_channels} x {model.input_size} x {model.input_size}",
        "classes": str(model.num_classes),
        "predicts": facts["diffusion"]["parametrisation"],
        "VAE": str(facts["codec"]),
        **history,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    card = ModelCardData(license="apache-2.0", library_name="fpdm", tags=["diffusion", family.lower()])
    iterations = " --iterations 4" if family == "FPDM" else ""
    text = (
        f"# {family}\n\n| | |\n| --- | --- |\n{table}\n\nImages:\n\n```\n"
        f"python scripts/sample.py --ckpt THIS_FOLDER --budget 280{iterations} --num-samples 16\n```\n"
    )
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}")
