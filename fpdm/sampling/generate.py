"""From image indices to images: noise and conditions by index, then the sampling run, then decoding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fpdm.config import check_range, limits
from fpdm.data.batches import to_uint8
from fpdm.devices import send
from fpdm.sampling.allocation import ALLOCATIONS, most_updates
from fpdm.sampling.call import Call, ModelCalls, Source
from fpdm.sampling.noise import image_attributes, image_labels, image_noise
from fpdm.sampling.plan import Plan, make_plan, plan_of_counts
from fpdm.sampling.sampler import run_plan
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import SOLVERS, make_solver


def plan_for(source: Source, config: SamplingConfig) -> Plan:
    """The plan of a sampling config for this source; ValueError for settings that the source does not support."""
    config = config.resolved(source.iterative)
    source.check(config.guidance, config.solving)
    conditions_for(source, config, [])
    spacing, cost = SOLVERS[config.sampler].spacing, source.cost_with(config.guidance)
    times = source.process.times(config.shift)
    if config.counts is not None:
        plan = plan_of_counts(cost, config.counts, times, spacing)
    else:
        plan = make_plan(
            cost,
            budget=config.budget,
            steps=config.steps,
            iterations=config.iterations,
            allocation=config.allocation,
            ratio=config.ratio,
            times=times,
            spacing=spacing,
        )
    at_run_time = ALLOCATIONS[config.allocation].at_run_time is not None
    most = [most_updates(config)] * len(plan.steps) if at_run_time else plan.iterations
    calls = list(zip(plan.timesteps, most, strict=True))
    config.guidance.check_calls(times, source.early_head, source.cost, calls)
    return plan


def conditions_for(source: Source, config: SamplingConfig, indices: Sequence[int]) -> Tensor:
    """Labels (len(indices),) of images, or attributes (len(indices), A), on the CPU; ValueError for settings of the
    other kind."""
    if source.attributes is None:
        if config.attributes is not None:
            raise ValueError(
                f"attributes={config.attributes}: this model is conditioned on classes; leave it out, or give classes"
            )
        return image_labels(config.seed, indices, source.num_classes, config.classes)
    if config.classes is not None:
        raise ValueError(
            f"classes={config.classes}: this model is conditioned on attributes, {', '.join(source.attributes.names)}; "
            "give these instead, as in [{NAME: 1}]"
        )
    return image_attributes(config.seed, indices, source.attributes, config.attributes)


def total_flops(config: SamplingConfig, plan: Plan, updates: Sequence[float] | None = None) -> float:
    """FLOPs of one image; a guided call counts twice. updates: of each call, if they differ from the plan's."""
    updates = plan.iterations if updates is None else updates
    calls = zip(plan.timesteps, updates, strict=True)
    return sum((2 if config.guidance.at(t) else 1) * plan.cost.flops(k) for t, k in calls)


def check_decodable(source: Source) -> None:
    """ValueError for a source without a codec."""
    if source.codec is None:
        raise ValueError("source.codec is not set: it decodes the latents to images; make the source with a codec")


def sample_images(
    source: Source,
    config: SamplingConfig,
    plan: Plan,
    indices: Sequence[int],
    on_step: Callable[[int, Call], None] | None = None,
    with_residuals: bool = False,
) -> Tensor:
    """uint8 images (len(indices), 3, H, W) on the source's device, as one batch.

    on_step: see `run_plan`; with_residuals: see `ModelCalls`.

    An image depends only on (config, plan, its index): it is the same in any batch, up to float rounding.
    """
    config = config.resolved(source.iterative)
    check_decodable(source)

    def noise(number: int) -> Tensor:  # generated on the CPU, so it is the same for every device
        return send(image_noise(config.seed, indices, number, source.latent_shape), source.device)

    at_run_time = ALLOCATIONS[config.allocation].at_run_time
    allocation = at_run_time and at_run_time(plan.iterations, len(indices), source.device, config)
    conditions = send(conditions_for(source, config, indices), source.device)
    calls = ModelCalls(source, conditions, config.guidance, config.solving, allocation, with_residuals)
    fresh = (lambda i: noise(i + 1)) if SOLVERS[config.sampler].needs_noise(config.eta) else None
    advance = make_solver(config.sampler, source.process, plan.timesteps, config.eta, fresh)
    return to_uint8(source.codec.decode(run_plan(calls, plan, noise(0), advance, on_step)))


def sample(source: Source, count: int, batch_size: int = 64, **settings) -> Tensor:
    """Sample images 0 to count - 1; returns uint8 (count, 3, H, W) on the CPU.

    settings: those of a SamplingConfig, for example budget=280, iterations=4, classes=[207, 360].
    """
    check_range(1, limits.SAMPLES, count=count)
    check_range(1, limits.BATCH, batch_size=batch_size)
    config = SamplingConfig(**settings)
    plan = plan_for(source, config)
    batches = (range(first, min(first + batch_size, count)) for first in range(0, count, batch_size))
    with torch.inference_mode():
        return torch.cat([sample_images(source, config, plan, indices).cpu() for indices in batches])
