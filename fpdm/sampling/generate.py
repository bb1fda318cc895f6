"""From image indices to images: noise and labels by index, a plan run, latents decoded."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpdm.config import SamplingConfig, check_range, limits
from fpdm.data.batches import to_uint8
from fpdm.data.codec import Codec
from fpdm.devices import send
from fpdm.diffusion import Diffusion
from fpdm.sampling.guidance import guided
from fpdm.sampling.noise import image_labels, image_noise
from fpdm.sampling.plan import Plan, make_plan, plan_of_counts
from fpdm.sampling.sampler import sample
from fpdm.sampling.solvers import MULTISTEP, TWO_CALLS
from fpdm.sampling.starts import Starts

DEFAULT_ITERATIONS = 4  # the paper's optimum at 280 block passes is 4 to 8 (Fig. 4)


class Source(NamedTuple):
    """What images are drawn from.

    denoise: see `sampler.sample`; explicit_blocks: its block passes outside the implicit layer;
    iterative: whether it has one. latent_shape: (C, h, h). guidable: whether the null label was trained.
    """

    denoise: Callable[..., Any]
    diffusion: Diffusion
    codec: Codec
    latent_shape: tuple[int, int, int]
    num_classes: int
    guidable: bool
    explicit_blocks: int
    iterative: bool
    device: torch.device


def plan_for(source: Source, config: SamplingConfig) -> Plan:
    """The plan that a sampling config means for this source."""
    config = config.resolved(source.iterative)
    if not source.iterative and config.iterations is not None:
        raise ValueError(f"iterations={config.iterations}: an explicit model (DiT) has no iterations")
    steps = {"down_to_zero": config.sampler not in MULTISTEP, "two_calls": config.sampler in TWO_CALLS}
    if config.counts is not None:
        if not source.iterative:
            raise ValueError(f"counts={config.counts}: an explicit model (DiT) has no iterations")
        return plan_of_counts(source.explicit_blocks, config.counts, source.diffusion.timesteps, **steps)
    return make_plan(
        source.explicit_blocks,
        budget=config.budget,
        steps=config.steps,
        iterations=(config.iterations or DEFAULT_ITERATIONS) if source.iterative else None,
        allocation=config.allocation,
        ratio=config.ratio,
        timesteps=source.diffusion.timesteps,
        **steps,
    )


def labels_for(source: Source, config: SamplingConfig, indices: Sequence[int]) -> Tensor:
    """Labels (len(indices),) of images, on the CPU."""
    return image_labels(config.seed, indices, source.num_classes, config.classes)


def most_iterations(config: SamplingConfig) -> int:
    """The most updates of one timestep under adaptive allocation."""
    return math.ceil(config.ratio * (config.iterations or DEFAULT_ITERATIONS))


def forward_passes(config: SamplingConfig, plan: Plan) -> list[int]:
    """How many times the network sees an image at each timestep: twice where it is guided."""
    return [2 if guided(config.cfg_scale, config.cfg_interval, step.t) else 1 for step in plan.steps]


def draw_images(
    source: Source,
    config: SamplingConfig,
    plan: Plan,
    indices: Sequence[int],
    on_step: Callable[[int, Any, Tensor], None] | None = None,
    with_residuals: bool = False,
) -> Tensor:
    """uint8 images (len(indices), 3, R, R) on the source's device, as one batch.

    on_step, with_residuals: see `sampler.sample`.

    An image depends on (config, plan, its index) alone: the same in any batch, up to float rounding.
    """
    config = config.resolved(source.iterative)
    check_config(source, config)
    reuse = source.iterative if config.reuse is None else config.reuse

    def noise(draw: int) -> Tensor:  # the CPU's, for every device
        return send(image_noise(config.seed, indices, draw, source.latent_shape), source.device)

    latents = sample(
        source.denoise,
        source.diffusion,
        plan,
        noise(0),
        send(labels_for(source, config, indices), source.device),
        step_noise=(lambda i: noise(i + 1)) if config.sampler == "ddpm" or config.eta > 0 else None,
        sampler=config.sampler,
        eta=config.eta,
        starts=Starts(config.reuse_weight, config.extrapolation) if reuse else None,
        anderson=config.anderson,
        tolerance=config.tolerance if config.allocation == "adaptive" else None,
        most=most_iterations(config),
        cfg_scale=config.cfg_scale,
        cfg_channels=config.cfg_channels,
        cfg_interval=config.cfg_interval,
        guidance_rescale=config.guidance_rescale,
        null_label=source.num_classes if source.guidable else None,
        clip_x0=source.codec.clip,
        on_step=on_step,
        with_residuals=with_residuals,
    )
    return to_uint8(source.codec.decode(latents))


def draw(source: Source, count: int, batch_size: int = 64, **settings) -> Tensor:
    """Images 0 to count - 1 of the given settings, uint8 (count, 3, R, R) on the CPU.

    settings: those of a SamplingConfig, as in budget=280, iterations=4, classes=[207, 360].
    """
    check_range(1, limits.SAMPLES, count=count)
    check_range(1, limits.BATCH, batch_size=batch_size)
    config = SamplingConfig(**settings)
    plan = plan_for(source, config)
    batches = (range(first, min(first + batch_size, count)) for first in range(0, count, batch_size))
    with torch.inference_mode():
        return torch.cat([draw_images(source, config, plan, indices).cpu() for indices in batches])


def check_config(source: Source, config: SamplingConfig) -> None:
    """Refuse what this source cannot do, before anything runs."""
    labels_for(source, config, [])
    if not source.iterative:
        for name, off in (("reuse", None), ("reuse_weight", 1), ("extrapolation", 0), ("anderson", 0)):
            value = getattr(config, name)
            if value != off and value is not False:
                said = "true" if value is True else value
                raise ValueError(
                    f"{name}={said}: an explicit model (DiT) has no solution to start from or to solve for"
                )
    if config.cfg_scale != 1 and not source.guidable:
        raise ValueError(
            f"cfg_scale={config.cfg_scale}: this model was trained without label dropout, so it has no null label "
            "to guide against; use cfg_scale 1"
        )
    if config.cfg_channels is not None and config.cfg_channels > source.latent_shape[0]:
        raise ValueError(f"cfg_channels={config.cfg_channels}: the latent has {source.latent_shape[0]} channels")
