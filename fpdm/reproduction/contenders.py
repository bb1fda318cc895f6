"""Trained models, ready for scoring, with the cost of their training."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

from fpdm.evaluation.comparison import Contender
from fpdm.loading import load_checkpoint, open_source
from fpdm.models import Denoiser
from fpdm.models.pretrained import weight_files
from fpdm.records import read_lines, read_sections


class Trained(NamedTuple):
    """A trained model. steps and seconds: of its training, from the log. config: of the run, as a dictionary. run: its
    folder."""

    contender: Contender
    model: Denoiser
    steps: int
    seconds: float
    config: dict
    run: Path

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def load_contender(checkpoint: str | Path, device: torch.device | str = "cpu", precision: str = "no") -> Contender:
    """The EMA weights of a run, a checkpoint or an exported folder, ready for scoring. Its name is DiT or FPDM."""
    return _contender(*load_checkpoint(checkpoint), device, precision)


def _contender(
    model: Denoiser, facts: dict, folder: Path, device: torch.device | str, precision: str = "no"
) -> Contender:
    digest = hashlib.blake2b(precision.encode() if precision != "no" else b"", digest_size=8)
    for path in weight_files(folder / "ema" if (folder / "ema").is_dir() else folder):
        digest.update(path.read_bytes())
    source = open_source(model, facts, device=device, precision=precision)
    return Contender(model.family, digest.hexdigest(), source)


def load_trained(run: Path, device: torch.device | str = "cpu", precision: str = "no") -> Trained:
    """The latest checkpoint of a run. precision: for sampling; no, bf16 or fp16."""
    sections = {"model": {"name": str}, "optim": {"batch_size": int}, "sjfb": {"grad": int, "no_grad": int}}
    config = read_sections(run / "config.yaml", sections)
    batch, step, seconds = config["optim"]["batch_size"], 0, 0.0
    for line in read_lines(run / "log.jsonl", {"step": int, "images_per_s": float}):
        if line["images_per_s"] <= 0:
            raise ValueError(f"{run / 'log.jsonl'}: images_per_s={line['images_per_s']}: must be positive")
        seconds, step = seconds + (line["step"] - step) * batch / line["images_per_s"], line["step"]
    model, facts, folder = load_checkpoint(run)
    return Trained(_contender(model, facts, folder, device, precision), model, step, seconds, config, run)
