"""Trained models, ready for scoring, with the cost of their training."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from fpdm.evaluation.comparison import Contender
from fpdm.loading import load_checkpoint, open_source
from fpdm.models import Denoiser
from fpdm.models.pretrained import weight_files
from fpdm.training.checkpoint import find_checkpoint, step_of
from fpdm.training.runlog import has_run, latest_run


class Trained(NamedTuple):
    """A trained model. steps and seconds: of its training, from the log. config: of the run, as a dictionary."""

    contender: Contender
    model: Denoiser
    steps: int
    seconds: float
    config: dict

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def load_contender(checkpoint: str | Path, device: torch.device | str = "cpu") -> Contender:
    """The EMA weights of a run, a checkpoint or an exported folder, ready for scoring. Its name is DiT or FPDM."""
    return _contender(*load_checkpoint(checkpoint), device)


def _contender(
    model: Denoiser, facts: dict, folder: Path, device: torch.device | str, precision: str = "no"
) -> Contender:
    digest = hashlib.blake2b(precision.encode() if precision != "no" else b"", digest_size=8)
    for path in weight_files(folder / "ema" if (folder / "ema").is_dir() else folder):
        digest.update(path.read_bytes())
    source = open_source(model, facts, device=device, precision=precision)
    return Contender(model.family, digest.hexdigest(), source)


def finished_run(runs: Path, name: str, steps: int) -> Path | None:
    """The folder in `runs` of the newest run of this name, if it was trained for so many steps."""
    if not has_run(str(runs), name):
        return None
    run = latest_run(str(runs), name)
    return run if step_of(find_checkpoint(run)) == steps else None


def load_trained(run: Path, device: torch.device | str = "cpu", precision: str = "no") -> Trained:
    """The latest checkpoint of a run. precision: for sampling; no, bf16 or fp16."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    batch, step, seconds = config["optim"]["batch_size"], 0, 0.0
    for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        seconds, step = seconds + (line["step"] - step) * batch / line["images_per_s"], line["step"]
    model, facts, folder = load_checkpoint(run)
    return Trained(_contender(model, facts, folder, device, precision), model, step, seconds, config)
