"""From a checkpoint to a source of images. This module joins packages that do not import each other."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from fpdm.conditionings import LABELS
from fpdm.cost import ForwardCost
from fpdm.data.attributes import Attributes
from fpdm.data.codec import Codec, open_codec
from fpdm.devices import SAMPLING_PATIENCE, check_precision, process_state
from fpdm.export import locate_codec
from fpdm.models import Denoiser, DenoiserOutput, compile_layers, forward_cost, load_pretrained
from fpdm.models.pretrained import resolve_folder
from fpdm.precision import PRECISIONS
from fpdm.processes import Process, make_process
from fpdm.sampling.call import Source
from fpdm.training.checkpoint import find_checkpoint
from fpdm.training.facts import SAMPLING, read_facts

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_checkpoint(source: str | Path, weights: str = "ema") -> tuple[Denoiser, dict, Path]:
    """Model in eval mode, its sampling facts and the checkpoint's folder.

    source: a run's folder (its latest checkpoint), one checkpoint, or an exported folder or its
        Hub id. weights: `ema`, `model` or another of the checkpoint's averages, such as `ema-0.999`; an exported
        folder has only one of them.
    """
    if (exported := _exported(source)) is not None:
        facts = read_facts(exported)
        kind = facts.get("weights", "model")
        if weights not in ("ema", kind):
            raise ValueError(f"weights={weights}: {source} is an export of the {kind} weights only")
        return load_pretrained(exported), locate_codec(exported, facts), exported
    checkpoint = find_checkpoint(source)
    kinds = sorted(path.parent.name for path in checkpoint.glob(f"*/{SAMPLING}"))
    if weights not in kinds:
        raise ValueError(f"weights={weights!r}: {checkpoint} has {', '.join(kinds)}; choose one of them")
    facts = read_facts(checkpoint / weights)
    return load_pretrained(checkpoint / weights), facts, checkpoint


def _exported(source: str | Path) -> Path | None:
    """The folder of an exported model, downloaded if needed; None if `source` is not one."""
    folder = Path(source)
    if not folder.exists() and HUB_ID.fullmatch(str(source)):
        folder = resolve_folder(source)
    return folder if (folder / SAMPLING).is_file() else None


def load_source(
    checkpoint: str | Path,
    *,
    weights: str = "ema",
    vae: str | None = None,
    device: torch.device | str | None = None,
    precision: str = "no",
    compiled: bool = False,
) -> Source:
    """A source of images from a run, a checkpoint, an exported folder or its Hub id.

    weights: ema, model or another average of the checkpoint. vae: where its codec is, if it has moved. device: by
    default this process's: the accelerator if there is one. precision: of the network, no, bf16 or fp16. compiled:
    compile its layers; useful for many images.
    """
    model, facts, folder = load_checkpoint(checkpoint, weights)
    source = open_source(model, facts, vae, device or process_state(SAMPLING_PATIENCE).device, precision)
    if compiled:
        compile_layers(model)
    kind = facts.get("weights", weights)  # an exported folder has one kind, and says which
    origin = {"checkpoint": str(folder), "weights": kind, "precision": precision, "codec": facts["codec"]}
    return source._replace(origin=origin)


def open_source(
    model: Denoiser, facts: dict, vae: str | None = None, device: torch.device | str = "cpu", precision: str = "no"
) -> Source:
    """A source of images from a model and its facts; `vae` overrides where its codec is found."""
    device = torch.device(device)
    check_precision("precision", precision, device)
    codec = open_model_codec(model, facts, vae, device)
    process, attributes = make_process(facts["diffusion"]), facts.get("attributes")
    return make_source(model.to(device), process, codec, precision, attributes=attributes)


def open_model_codec(model: Denoiser, facts: dict, vae: str | None = None, device: torch.device | str = "cpu") -> Codec:
    """The codec a model was trained with, opened from `vae` or from its facts. ValueError if it is another one.

    ValueError or FileNotFoundError if it cannot be opened; of one from the facts, it says so.
    """
    if not (vae or facts["codec"]):
        raise ValueError("vae is not set, and the latents this model was trained on do not name their VAE; set it")
    try:
        codec = open_codec(vae or facts["codec"], device)
    except (FileNotFoundError, ValueError) as error:
        if vae:
            raise
        raise FileNotFoundError(f"{error}; the model's {SAMPLING} names this VAE: if it has moved, set vae") from error
    check_model_codec(codec, model, facts)
    return codec


def make_source(
    model: Denoiser,
    process: Process,
    codec: Codec | None,
    precision: str = "no",
    cost: ForwardCost | None = None,
    attributes: Attributes | None = None,
) -> Source:
    """A source from parts that are already on their device. cost: of a call, counted if not given. attributes: of the
    training data, for a model that is conditioned on them; ValueError without. Other models do not use them."""
    of_labels = model.conditioned_on == LABELS
    if not of_labels and attributes is None:
        raise ValueError(
            "attributes=None: the model is conditioned on attributes; give those of some training data, as they are in "
            "the facts that load_checkpoint returns"
        )
    return Source(
        denoise=denoiser(model, precision),
        process=process,
        cost=cost or forward_cost(model),
        latent_shape=(model.in_channels, *model.latent_size),
        num_classes=model.num_classes,
        guidable=model.class_dropout > 0,
        codec=codec,
        device=next(model.parameters()).device,
        reuse=model.reuse,
        reusable=model.reusable,
        early_head=model.early_head,
        attributes=None if of_labels else attributes,
    )


def check_model_codec(codec: Codec, model: Denoiser, facts: dict) -> None:
    """ValueError for a codec that the model was not trained with."""
    if codec.channels != model.in_channels:
        raise ValueError(
            f"vae {codec.source} has {codec.channels} latent channels, but the model has {model.in_channels}; "
            f"its {SAMPLING} says that it was trained with {facts['codec']}"
        )
    if facts["codec_fingerprint"] not in (None, codec.fingerprint):  # None: imported latents of a VAE never opened
        raise ValueError(
            f"vae {codec.source} has other weights than the one the model was trained with, {facts['codec']}: its "
            f"fingerprint is {codec.fingerprint}, and the model's {SAMPLING} says {facts['codec_fingerprint']}; give "
            "the VAE of its training"
        )


def denoiser(model: Denoiser, precision: str) -> Callable[..., DenoiserOutput]:
    """The model as a function for samplers, with arithmetic in the given precision (no, bf16, fp16)."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]

    def denoise(x, t, y, **kwargs) -> DenoiserOutput:
        with nullcontext() if dtype is None else torch.autocast(x.device.type, dtype):
            return model(x, t, y, **kwargs)

    return denoise
