"""How a run starts: anew, from another network's weights (--init), as a fork, or where it was (--resume)."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fpdm.conditionings import LABELS
from fpdm.config import DiffusionConfig, ExperimentConfig
from fpdm.data.latents import Manifest
from fpdm.models import Denoiser
from fpdm.models.inherit import inherit
from fpdm.training.describe import labelled
from fpdm.training.open_run import is_new

# Settings of the process that say how it is trained, not what the network gets and predicts.
OF_TRAINING = {"weighting", "min_snr_gamma", "learn_sigma", "draw", "draw_mean", "draw_deviation"}


class Init(NamedTuple):
    """The weights that a new run starts from.

    source: where they are, as the user gave it. weights: ema, model or another average. rule: for an FPDM from a DiT,
    one of INIT_RULES in fpdm.models.origins; None for the first. read: opens them, fpdm.loading.load_checkpoint:
    (source, weights) -> model on the CPU, its facts (sampling.json), its folder.
    """

    source: str
    weights: str
    rule: str | None
    read: Callable[[str, str], tuple[Denoiser, dict, Path]]


def check_start(resume: str | None, fork: str | None, init: str | None) -> None:
    """ValueError for ways to start a run that exclude each other. init: the source of the weights."""
    if fork is not None and init is not None:
        raise ValueError(
            f"--fork {fork} with --init {init}: a fork continues another run, with its optimizer, and --init takes "
            "weights only; leave one out"
        )
    for option, source, what in (("--fork", fork, "a fork"), ("--init", init, "what starts from weights")):
        if source is not None and resume not in (None, "auto"):
            raise ValueError(
                f"--resume {resume} with {option} {source}: {what} is a new run; leave one out, or resume auto"
            )


def take_weights(
    init: Init | None,
    network: Denoiser,
    config: ExperimentConfig,
    manifest: Manifest,
    resume: str | None,
    accelerator: Accelerator,
) -> str | None:
    """Give the network of a new run its weights, alike on every rank; what to say of it. None if there is no `init`,
    or if a run is resumed, whose weights are its own by now."""
    found = [init is not None and accelerator.is_main_process and is_new(config, resume)]
    broadcast_object_list(found)
    return start_from(init, network, config, manifest) if found[0] else None


def start_from(init: Init, network: Denoiser, config: ExperimentConfig, manifest: Manifest | None) -> str:
    """Give a new network the weights; returns what was taken and what differs, in lines.

    manifest: of the data; None if there is no store yet, in a dry run. ValueError for weights that do not fit.
    """
    source, facts, folder = init.read(init.source, init.weights)
    try:
        taken = inherit(network, source, init.rule, *_names(network, source, facts, manifest))
    except ValueError as error:
        raise ValueError(f"--init {init.source}: {error}") from error
    width = max(len(part) for part, _ in taken.rows)
    rows = [f"{part:<{width}} <- {origin}" for part, origin in taken.rows]
    notes = [f"warning: {note}" for note in [*taken.notes, *_differences(facts, config, manifest)]]
    return labelled("starts from", [f"the {facts.get('weights', init.weights)} weights of {folder}", *rows, *notes])


def _names(
    network: Denoiser, source: Denoiser, facts: dict, manifest: Manifest | None
) -> tuple[list[str] | None, list[str]]:
    """Names of the classes or of the attributes, of the data and of the source."""
    theirs = facts["class_names"] if source.conditioned_on == LABELS else facts["attributes"].names
    if manifest is None:
        return None, theirs
    return manifest.class_names if network.conditioned_on == LABELS else manifest.attribute_names, theirs


def _differences(facts: dict, config: ExperimentConfig, manifest: Manifest | None) -> list[str]:
    """What the weights were trained on, where it differs from the config: the process and the VAE."""
    notes = []
    before = asdict(DiffusionConfig()) | facts["diffusion"]
    changed = [
        f"{name} was {before[name]}, is {value}"
        for name, value in asdict(config.diffusion).items()
        if name not in OF_TRAINING and value != before[name]
    ]
    if changed:
        notes.append(f"the weights are of another process ({'; '.join(changed)})")
    vaes = {facts["codec_fingerprint"], None if manifest is None else manifest.fingerprint}
    if None not in vaes and len(vaes) > 1:
        notes.append(f"the weights were trained on the latents of another VAE ({facts['codec']})")
    return notes
