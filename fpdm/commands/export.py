"""Export a run's weights as a separate folder, for sampling anywhere or for the Hub."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from fpdm import cli
from fpdm.export import export_model, upload
from fpdm.loading import load_checkpoint, open_model_codec
from fpdm.pipeline import make_pipeline
from fpdm.records import read_sections
from fpdm.training.checkpoint import step_of

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is exported, and to where.

    Args:
        ckpt: a run's folder (its latest checkpoint), or one checkpoint.
        out: the new folder.
        weights: ema, model, or another average of the checkpoint, such as ema-0.999.
        with_vae: also put the VAE into the folder, so that it needs nothing else.
        vae: where the VAE is, if it has moved since training.
        half: round weights to float16, in files of at most 14 MB.
        pipeline: make it a diffusers pipeline, which FPDMPipeline.from_pretrained opens; this includes the VAE.
        notes: Markdown file for the model card, below its table: scores, limits, an example (a general example if not
            given).
        push_to: Hub repository to upload the folder to, as in user/name (null for none).
    """

    ckpt: str = ""
    out: str = ""
    weights: str = "ema"
    with_vae: bool = False
    vae: str | None = None
    half: bool = False
    pipeline: bool = False
    notes: str | None = None
    push_to: str | None = None

    def __post_init__(self):
        for name in ("ckpt", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; see --help")
        if self.half and self.pipeline:
            raise ValueError("half=true with pipeline=true: a pipeline's weights are not rounded; choose one")
        if self.notes is not None and self.pipeline:
            raise ValueError(f"notes={self.notes} with pipeline=true: a pipeline has the general card; choose one")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    notes = None if settings.notes is None else Path(settings.notes).read_text(errors="replace")
    model, facts, checkpoint = load_checkpoint(settings.ckpt, settings.weights)
    facts.setdefault("weights", settings.weights)
    trained = history(checkpoint, facts["weights"])
    if settings.pipeline or settings.with_vae or settings.vae:
        codec = open_model_codec(model, facts, settings.vae)
        facts["codec"] = codec.source
    if settings.pipeline:
        make_pipeline(model, facts, codec).save_pretrained(settings.out, trained)
    else:
        codec = codec if settings.with_vae else None
        export_model(settings.out, model, facts, codec, trained, settings.half, notes)
    logger.info(f"{checkpoint} ({facts['weights']} weights) -> {settings.out}")
    if settings.push_to:
        logger.info(f"{settings.out} -> {upload(settings.out, settings.push_to)}")


def history(checkpoint: Path, weights: str) -> dict[str, str]:
    """How the weights were trained, from the config of their run."""
    path = checkpoint.parent.parent / "config.yaml"
    if checkpoint.parent.name != "checkpoints" or not path.is_file():
        return {}
    config = read_sections(path, {"optim": {"steps": int}, "sjfb": {}})
    kinds = {"ema": "exponential moving average", "model": "as trained"}
    facts = {"weights": kinds.get(weights, f"averaged ({weights})")}
    facts["training steps"] = f"{step_of(checkpoint):,d} of {config['optim']['steps']:,d}"
    for section in ("sjfb", "optim"):
        facts[section] = f"`{json.dumps(config[section])}`"
    return facts


def run() -> None:
    """The command fpdm-export: main(), with one-line error messages."""
    cli.run(main)
