"""What is decided before the first step: whether settings and data fit, the network for the data, each rank's share."""

import importlib.util
import math
from dataclasses import asdict, replace

import torch

from fpdm.conditionings import CONDITIONINGS, LABELS
from fpdm.config import DataConfig, ExperimentConfig, OptimConfig, SJFBConfig
from fpdm.data.codec import PIXELS, Codec, open_codec
from fpdm.data.latents import LatentStore, Manifest, check_store_codec
from fpdm.extent import plain
from fpdm.models import Denoiser, build_model
from fpdm.training.sjfb import largest_iterations


def check_tracker(tracker: str) -> None:
    """ValueError if the tracker's package is missing: accelerate would silently log nothing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"run.tracker={tracker}: the package is not installed; pip install -e '.[track]'")


def split_batch(optim: OptimConfig, rank: int, ranks: int) -> tuple[slice, int]:
    """This rank's rows of the global batch, and how many of them it takes at a time."""
    if optim.batch_size % ranks:
        raise ValueError(f"optim.batch_size={optim.batch_size}: not a multiple of the {ranks} processes")
    share = optim.batch_size // ranks
    micro = optim.micro_batch_size or share
    if share % micro:
        raise ValueError(
            f"optim.micro_batch_size={micro}: does not divide the {share} samples of each of {ranks} processes"
        )
    return slice(rank * share, (rank + 1) * share), micro


def check_solves(config: ExperimentConfig, network: Denoiser, micro: int) -> None:
    """ValueError for ways to train the iterates that this network or this number of samples at a time does not allow,
    or that would change nothing."""
    _check_exits(config.sjfb, network)
    if not network.iterative:
        return
    others = [start for start in config.sjfb.start if start != "input"]
    kind = config.model.injection or "mlp"
    if config.sjfb.supervise != "last" and largest_iterations(config.sjfb).m == 1:
        raise ValueError(
            f"sjfb.supervise={config.sjfb.supervise}: only one update of a step has a gradient, so there is no earlier "
            "iterate to train; raise sjfb.grad, choose another sjfb.variant, or leave it out"
        )
    if config.sjfb.variant == "implicit" and not network.implicit.injection.every_update:
        raise ValueError(
            f"sjfb.variant=implicit with model.injection={kind}: the input enters only at the start, so the embedding "
            "and the pre blocks would not learn; choose another variant or injection"
        )
    if config.sjfb.no_grad and not network.implicit.injection.every_update and config.sjfb.start != ["other"]:
        raise ValueError(
            f"sjfb.no_grad={config.sjfb.no_grad} with model.injection={kind}: the input enters only at the start, so "
            "after updates without gradient the embedding and the pre blocks would not learn; set sjfb.no_grad to 0"
        )
    if others and not network.reusable:
        raise ValueError(
            f"sjfb.start={others[0]} with model.injection={kind}: no update would see the input; choose another "
            "injection, or sjfb.start input"
        )
    if "other" in others and micro % 2:
        raise ValueError(
            f"sjfb.start=other with {micro} samples at a time: neighbours in the batch exchange their solutions; make "
            "optim.micro_batch_size (or each process's share of optim.batch_size) even"
        )


def _check_exits(sjfb: SJFBConfig, network: Denoiser) -> None:
    """Numbers of updates (blocks of a DiT) that no step of this training makes, exits that none has, and weights of
    losses without exits."""
    most, what = network.explicit_blocks, "blocks"
    possible, remedy = most, "give at most that, or more model.depth"
    if network.iterative:
        largest, unlimited = largest_iterations(sjfb), largest_iterations(replace(sjfb, grow=None))
        most, possible, what = sum(largest), sum(unlimited), "updates"
        if sjfb.start == ["other"]:  # exits are counted from the neighbour's solution
            most = largest.m
        remedy = "give at most that, or raise sjfb.grad or sjfb.no_grad"
    if sjfb.grow is not None and sjfb.grow[-1][1] > possible:
        raise ValueError(
            f"sjfb.grow={sjfb.grow}: a step has at most {possible} {what}, so it would never grow to "
            f"{sjfb.grow[-1][1]:g}; {remedy}"
        )
    if network.early_head > network.exit_after(most):
        raise ValueError(
            f"model.early_head={network.early_head}: a step has at most {most} {what}, so its last exit is "
            f"{network.exit_after(most)} and the head would never be trained; {remedy}"
        )
    if sjfb.variant == "implicit" and network.iterative and network.inside_update(network.early_head):
        raise ValueError(
            f"model.early_head={network.early_head} with sjfb.variant=implicit: this exit is inside an update, which "
            f"the adjoint equation takes as a whole; give one after a whole update, as in {network.exit_after(1)}"
        )
    if not network.early_head and sjfb.early_head_weight != SJFBConfig.early_head_weight:
        raise ValueError(
            f"sjfb.early_head_weight={sjfb.early_head_weight} without model.early_head: there is no early head; leave "
            "it out, or set model.early_head"
        )
    if not network.iterative and sjfb.supervise != "last" and possible == 1:
        raise ValueError(
            f"sjfb.supervise={sjfb.supervise}: this network has only one block, so there is no earlier one to train; "
            "set model.depth to more, or leave it out"
        )


def check_store(data: DataConfig, store: LatentStore) -> None:
    """ValueError if the store is not what the config asks for."""
    manifest = store.manifest
    if data.mirror and manifest.flips < 2:
        raise ValueError(
            f"data.mirror=true: {store.folder} holds no mirror images; set data.mirror: false, "
            "or encode with --mirror true"
        )
    found = {"shape": list(manifest.shape), "classes": len(manifest.class_names)}
    wrong = [name for name, value in found.items() if getattr(data, name) not in (None, value)]
    found["scale"] = manifest.scale
    if None not in (data.scale, manifest.scale) and not math.isclose(data.scale, manifest.scale, rel_tol=1e-4):
        wrong.append("scale")
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"data.{name}={getattr(data, name)}: the latents in {store.folder} have {found[name]}; "
            f"set data.latents to a store that fits, or change data.{name}"
        )
    if data.vae is not None and manifest.fingerprint is not None and data.vae != manifest.codec:
        if PIXELS in (data.vae, manifest.codec):
            raise ValueError(
                f"data.vae={data.vae}: the latents in {store.folder} were made with {manifest.codec}; "
                "set data.latents to a store that fits, or change data.vae"
            )
        _check_same_vae(data.vae, store)


def _check_same_vae(vae: str, store: LatentStore) -> None:
    """Another name may be another location of the same VAE, so the weights are compared."""
    try:
        codec = open_codec(vae)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data.vae={vae}: the latents in {store.folder} were made with {store.manifest.codec}; whether this "
            f"is the same VAE cannot be checked ({error}); if it is, set data.vae to {store.manifest.codec}"
        ) from error
    check_store_codec(store.manifest, codec, store.folder)


def open_store_codec(data: DataConfig, store: LatentStore, device: torch.device) -> Codec:
    """The codec that decodes a store's latents: data.vae, or the one they were made with."""
    source = data.vae or store.manifest.codec
    if source is None:
        raise ValueError(f"data.vae is not set, and the latents in {store.folder} do not name their VAE; set it")
    codec = open_codec(source, device)
    check_store_codec(store.manifest, codec, store.folder)
    return codec


def build_network(
    config: ExperimentConfig, shape: list[int], classes: int, manifest: Manifest | None = None
) -> Denoiser:
    """The configured network for latents of `shape` (C, h, w) and a number of classes.

    manifest: of the latents, which has the attributes; None if there is no store yet.
    """
    channels, *size = shape
    return build_model(
        config.model.name,
        input_size=plain(size),
        in_channels=channels,
        num_classes=classes,
        learn_sigma=config.diffusion.learn_sigma,
        **_attributes(config, classes, manifest),
        **config.model.overrides(),
    )


def _attributes(config: ExperimentConfig, classes: int, manifest: Manifest | None) -> dict[str, list[float]]:
    """What a network must know of the attributes, nothing if it is conditioned on labels; ValueError if the data do not
    have what it is conditioned on."""
    if CONDITIONINGS[config.model.conditioning].of == LABELS:
        if classes == 1 and config.model.class_dropout > 0:
            raise ValueError(
                f"model.class_dropout={config.model.class_dropout}: the data has one class, so there is no label to "
                "drop; set it to 0"
            )
        return {}
    if manifest is None or not manifest.attribute_names:
        found = "there is no store there yet" if manifest is None else "the store there has no attributes"
        raise ValueError(
            f"model.conditioning={config.model.conditioning} with data.latents={config.data.latents}: {found}; encode "
            "images with attributes (encode_latents.py --attributes FILE), or set model.conditioning to class"
        )
    return {"attribute_mean": manifest.attribute_mean, "attribute_std": manifest.attribute_std}


def sampling_facts(config: ExperimentConfig, store: LatentStore) -> dict:
    """What sampling from a checkpoint needs besides the network; stored beside its weights."""
    manifest = store.manifest
    of_labels = CONDITIONINGS[config.model.conditioning].of == LABELS
    return {
        "diffusion": asdict(config.diffusion),
        "codec": manifest.codec,
        "codec_fingerprint": manifest.fingerprint,
        "class_names": manifest.class_names,
        "latents": manifest.content,
        **({} if of_labels else {"attributes": store.kept_attributes}),
    }


def flat_settings(config: ExperimentConfig) -> dict[str, str | int | float | bool]:
    """`section.name` -> value, in the types that trackers take."""
    return {
        f"{section}.{name}": value if isinstance(value, (str, int, float)) else str(value)
        for section, values in asdict(config).items()
        for name, value in values.items()
    }
