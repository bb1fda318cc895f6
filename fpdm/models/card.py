"""Model cards: the description of a model on its Hub page."""

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from fpdm.conditionings import LABELS


def model_card(model: nn.Module, family: str, facts: dict[str, str], notes: str) -> ModelCard:
    """A card with a table of the architecture, then of `facts`, and `notes` in Markdown below.

    model: a DiT or FixedPointDiT; family: DiT or FPDM.
    """
    height, width = model.latent_size
    if model.conditioned_on == LABELS:
        conditions = {"classes": model.num_classes}
    else:
        conditions = {"attributes": model.y_embedder.example(1).shape[1]}
    rows = {
        "family": "fixed point diffusion model" if model.iterative else "diffusion transformer",
        "parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,d}",
        "latents": f"{model.in_channels} x {height} x {width}",
        **conditions,
        **facts,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    data = ModelCardData(license="apache-2.0", library_name="fpdm", tags=["diffusion", family.lower()])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {family}\n\n| | |\n| --- | --- |\n{table}\n\n{notes}\n")
