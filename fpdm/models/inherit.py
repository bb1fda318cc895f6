"""Weights that a new network takes from a trained one: of its own family, or an FPDM from a DiT.

N tokens, D width, p patch size, C channels that the head predicts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.block_options import BlockOptions
from fpdm.models.dit import Denoiser
from fpdm.models.origins import INIT_RULES, Origin, block_origins, describe_origin

SIZES = {  # what must be the same, and the remedy
    "in_channels": "choose latents with as many channels (data.latents), or other weights",
    "patch_size": "choose a model.name with the same patch size, or other weights",
    "hidden_size": "choose a model.name or a model.hidden_size with the same width, or other weights",
    "num_heads": "set model.num_heads to that of the weights",
}
SAME, NEW = "the same", "as in a new network"


class Inherited(NamedTuple):
    """What a network took. rows: (part, where it is from), in words. notes: what differs besides."""

    rows: list[tuple[str, str]]
    notes: list[str]


@torch.no_grad()
def inherit(
    network: Denoiser,
    source: Denoiser,
    rule: str | None = None,
    names: Sequence[str] | None = None,
    source_names: Sequence[str] | None = None,
) -> Inherited:
    """Give a new network the weights of `source`, in place.

    In the same family, blocks that `source` does not have stay new. A new block is the identity, so a network that is
    only deeper computes what `source` computes.

    rule: for an FPDM from a DiT, one of INIT_RULES; None for copy. names, source_names: of the classes or attributes;
    what is learned of one is taken if it has the same name in both. ValueError for networks that do not fit.
    """
    _check(network, source, rule)
    origins = block_origins(network, source, rule or "copy")
    rows = [("x_embedder, t_embedder", SAME), ("y_embedder", _take_conditions(network, source, names, source_names))]
    for name in ("x_embedder", "t_embedder"):
        _take(name, network.get_submodule(name), source.get_submodule(name).state_dict())
    if network.options.positions == "learned":
        rows.append(("pos_embed", _take_positions(network, source)))
    for origin in origins:
        _take_blocks(network, source, origin)
        rows += describe_origin(origin)
    if network.iterative:
        rows += _take_injection(network, source)
    rows.append(("final_layer", _take_head(network, source, "final_layer")))
    if network.early_head:
        same = network.early_head == source.early_head
        rows.append(("early_layer", _take_head(network, source, "early_layer") if same else NEW))
    return Inherited(rows, _notes(network, source))


def _check(network: Denoiser, source: Denoiser, rule: str | None) -> None:
    """ValueError for networks between which no weights can be taken, whatever their depths."""
    if source.iterative and not network.iterative:
        raise ValueError("the weights are of an FPDM and the network is a DiT; choose an FPDM as model.name")
    for name, remedy in SIZES.items():
        theirs, ours = getattr(source, name), getattr(network, name)
        if theirs != ours:
            raise ValueError(f"{name} is {theirs} in the weights and {ours} in the network; {remedy}")
    for option in fields(BlockOptions):
        theirs, ours = (str(getattr(one.options, option.name)).lower() for one in (source, network))
        if theirs != ours:
            raise ValueError(
                f"model.{option.name} is {theirs} in the weights and {ours} in the network; set it to {theirs}"
            )
    if rule is not None and rule not in INIT_RULES:
        raise ValueError(f"init_rule={rule!r}: choose one of {', '.join(INIT_RULES)}")
    if rule is not None and network.iterative == source.iterative:
        raise ValueError(
            f"init_rule={rule}: only for an FPDM from a DiT, and both are a {network.family}; leave it out"
        )


def _take(part: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a state dict into a module; ValueError with the names of what does not fit."""
    ours = module.state_dict()
    shapes = [{name: value.shape for name, value in one.items()} for one in (ours, state)]
    if wrong := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        listed = ", ".join(f"{part}.{name}" for name in wrong)
        raise ValueError(f"{listed}: of other shapes in the weights than in the network; choose other weights")
    for name, value in ours.items():
        value.copy_(state[name])


def _take_conditions(
    network: Denoiser, source: Denoiser, names: Sequence[str] | None, source_names: Sequence[str] | None
) -> str:
    """What the conditionings have in common; returns what that is, in words."""
    if type(network.y_embedder) is not type(source.y_embedder):
        return NEW
    return network.y_embedder.take(source.y_embedder, names, source_names)


def _take_positions(network: Denoiser, source: Denoiser) -> str:
    """Learned positions (1, N, D), interpolated bicubically if rows or columns differ. (Others are computed.)"""
    if network.grid == source.grid:
        network.pos_embed.copy_(source.pos_embed)
        return SAME
    image = source.pos_embed.float().unflatten(1, source.grid).movedim(3, 1)  # (1, D, rows, columns)
    resampled = F.interpolate(image, size=network.grid, mode="bicubic", antialias=True)
    network.pos_embed.copy_(resampled.flatten(2).movedim(1, 2))
    before, now = ("{} x {}".format(*one.grid) for one in (source, network))
    return f"interpolated from {before} to {now} tokens"


def _take_blocks(network: Denoiser, source: Denoiser, origin: Origin) -> None:
    blocks, theirs = network.get_submodule(origin.stack), source.get_submodule(origin.source)
    for i, (block, numbers) in enumerate(zip(blocks, origin.numbers, strict=True)):
        if numbers:
            states = [theirs[number].state_dict() for number in numbers]
            mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
            _take(f"{origin.stack}.{i}", block, mean)


def _take_injection(network: Denoiser, source: Denoiser) -> Iterator[tuple[str, str]]:
    """Injection and loop embedding of an FPDM. A DiT has neither, and an injection of another kind does not fit."""
    ours, theirs = network.implicit, source.implicit if source.iterative else None
    if theirs is not None and type(ours.injection) is type(theirs.injection):
        _take("implicit.injection", ours.injection, theirs.injection.state_dict())
        yield "implicit.injection", SAME
    else:
        yield "implicit.injection", NEW
    vectors = None if theirs is None else theirs.loop_embedding  # (loops, D)
    found = 0 if ours.loop_embedding is None else len(ours.loop_embedding)
    if vectors is not None and len(vectors) != found:
        raise ValueError(
            f"model.loop_embedding is {len(vectors)} in the weights and {found} in the network; set it to "
            f"{len(vectors)}"
        )
    if found:
        if vectors is not None:
            ours.loop_embedding.copy_(vectors)
        yield "implicit.loop_embedding", NEW if vectors is None else SAME


def _take_head(network: Denoiser, source: Denoiser, name: str) -> str:
    """Weight (p p C, D) and bias (p p C), for the channels that both predict: the mean's come before the variance's."""
    ours, theirs = network.get_submodule(name), source.get_submodule(name)
    _take(f"{name}.adaLN_modulation", ours.adaLN_modulation, theirs.adaLN_modulation.state_dict())
    both = min(network.out_channels, source.out_channels)
    for own, their in zip(ours.linear.parameters(), theirs.linear.parameters(), strict=True):
        rows, known = own.unflatten(0, (-1, network.out_channels)), their.unflatten(0, (-1, source.out_channels))
        rows[:, :both] = known[:, :both].to(own.device)
    if network.out_channels > source.out_channels:
        return f"the same for the mean; for the variance {NEW}"
    return SAME if network.out_channels == source.out_channels else "that of the mean; the variance's is not needed"


def _notes(network: Denoiser, source: Denoiser) -> list[str]:
    before, now = (not one.iterative or one.pre_post_timestep_conditioning for one in (source, network))
    if before == now:
        return []
    words = {True: "timestep + label", False: "the label alone"}
    return [
        f"explicit blocks and head were conditioned on {words[before]}, now on {words[now]}; "
        f"--model.pre_post_timestep_conditioning {str(before).lower()} keeps that"
    ]
