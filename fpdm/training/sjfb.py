"""What a training step computes, beside its batch: Stochastic Jacobian-Free Backpropagation (Sec. 3.4, Alg. 1) and its
extensions. Everything here is a function of the settings and of (seed, step), so it is equal on every rank.

Equal draws also matter for speed: with independent ones every step would wait for the rank with the most updates.
"""

from typing import NamedTuple

import numpy as np

from fpdm.config import SJFBConfig
from fpdm.cost import ForwardCost
from fpdm.models import Denoiser
from fpdm.seeding import key

PLAIN_WEIGHT, WEIGHT_OF_ALL = 1 / 2, 1 / 3  # of earlier iterates, if not given


class Iterations(NamedTuple):
    """n updates without gradient, then m with."""

    n: int
    m: int


class Exit(NamedTuple):
    """An exit that is trained beside the last one. number: of block passes before it. weight: of its loss.
    distilled: share of the last iterate's prediction in what it is trained towards; the rest is the target."""

    number: int
    weight: float
    distilled: float = 0.0


class Work(NamedTuple):
    """What one step computes. n, m: updates without and with gradient; 0 for a DiT. depth: blocks of a DiT in use, None
    for all. start: where solves start. consistency: its weight at this step."""

    n: int = 0
    m: int = 0
    depth: int | None = None
    exits: tuple[Exit, ...] = ()
    start: str = "input"
    consistency: float = 0.0


def plan_step(config: SJFBConfig, network: Denoiser, seed: int, step: int, steps: int) -> Work:
    """The work of training step `step`, from 0, out of `steps`."""
    done = step / steps
    if not network.iterative:
        depth = limited(config, done, network.explicit_blocks)
        early_head = network.early_head if network.early_head <= depth else 0  # its block is not in use yet
        exits = draw_exits(config, network, early_head, 0, depth, done, seed, step)
        return Work(depth=depth if config.grow else None, exits=exits)
    n, m = draw_iterations(config, seed, step, done)
    start = draw_start(config, seed, step)
    # After a start from the neighbour's solution, updates are counted from there.
    exits = draw_exits(config, network, network.early_head, 0 if start == "other" else n, m, done, seed, step)
    consistency = 0.0
    if config.consistency and done > config.consistency_from:
        consistency = config.consistency * (done - config.consistency_from) / (1 - config.consistency_from)
    return Work(n, m, None, exits, start, consistency)


def work_cost(work: Work, cost: ForwardCost, config: SJFBConfig, early_head: int) -> tuple[float, float]:
    """Block passes forward, and FLOPs forward and backward, of one image in a step. cost: of a call with work.depth.

    The products of adjoint solves, whose number is not known before, are not in it.
    """
    updates = work.n + work.m
    passes, flops = cost.blocks(updates), cost.training_flops(work.n, work.m)
    for one in work.exits:
        shared = one.number != early_head
        passes += cost.exit_blocks if shared else 0
        flops += 3 * (cost.exit_flops if shared else cost.head_flops)
    if work.start == "other" and work.n:  # the explicit blocks run once more for the neighbour
        passes, flops = passes + cost.explicit_blocks, flops + cost.explicit_flops
    if work.consistency:
        passes, flops = passes + cost.blocks(updates), flops + cost.flops(updates)
    if cost.iterative and config.jacobian:  # an update, its backward pass, and the backward pass of both
        passes, flops = passes + cost.update_blocks, flops + 6 * cost.update_flops
    return passes, flops


def limited(config: SJFBConfig, done: float, count: int) -> int:
    """`count`, or the most that sjfb.grow allows after a share `done` of training."""
    allowed = [int(most) for share, most in config.grow or () if share <= done]
    return min(count, allowed[-1]) if allowed else count


def draw_iterations(config: SJFBConfig, seed: int, step: int, done: float = 0.0) -> Iterations:
    """(n, m) of a training step; done: share of training before it."""
    most_n, most_m = _most(config, done)
    if config.variant != "stochastic":
        return Iterations(most_n, most_m)
    generator = np.random.Generator(np.random.Philox(key("sjfb", seed, step)))
    n = generator.integers(0, most_n, endpoint=True)
    m = generator.integers(1, min(most_m, limited(config, done, int(n) + most_m) - int(n)), endpoint=True)
    return Iterations(int(n), int(m))


def draw_exits(
    config: SJFBConfig, network: Denoiser, early_head: int, n: int, m: int, done: float, seed: int, step: int
) -> tuple[Exit, ...]:
    """The earlier iterates that a step trains, of those with gradient, and the early head's exit, 0 for none."""
    exits, earlier = [], [network.exit_after(updates) for updates in range(n + 1, n + m)]
    if config.supervise == "all":
        weight = WEIGHT_OF_ALL if config.supervise_weight is None else config.supervise_weight
        exits = [Exit(number, weight) for number in earlier]
    elif config.supervise != "last" and earlier:
        generator = np.random.Generator(np.random.Philox(key("exit", seed, step)))
        weight = PLAIN_WEIGHT if config.supervise_weight is None else config.supervise_weight
        distilled = done if config.supervise == "distil" else 0.0
        exits = [Exit(int(generator.choice(earlier)), weight, distilled)]
    if not early_head:
        return tuple(exits)
    others = [one for one in exits if one.number != early_head]
    return (*others, Exit(early_head, config.early_head_weight))


def draw_start(config: SJFBConfig, seed: int, step: int) -> str:
    """Where the solves of a step start."""
    if len(config.start) == 1:
        return config.start[0]
    generator = np.random.Generator(np.random.Philox(key("start", seed, step)))
    return config.start[generator.integers(len(config.start))]


def mean_iterations(config: SJFBConfig) -> tuple[float, float]:
    """Expected n and m of a step, over the whole training."""
    means = [(share, *_means(config, begin)) for begin, share in stages(config)]
    return sum(share * n for share, n, _ in means), sum(share * m for share, _, m in means)


def mean_depth(config: SJFBConfig, depth: int) -> float:
    """Mean number of blocks in use, of a DiT of this depth."""
    return sum(share * limited(config, begin, depth) for begin, share in stages(config))


def largest_iterations(config: SJFBConfig) -> Iterations:
    """The largest step of a training: the one with the most updates with gradient, and of those the most without."""
    last = stages(config)[-1][0]
    most_n, most_m = _most(config, last)
    return Iterations(min(most_n, limited(config, last, most_n + most_m) - most_m), most_m)


def stages(config: SJFBConfig) -> list[tuple[float, float]]:
    """Where the stages of sjfb.grow begin, and how long they are, as shares of training; one without growth."""
    begins = [share for share, _ in config.grow or [[0.0, 0]]]
    return [(begin, end - begin) for begin, end in zip(begins, [*begins[1:], 1.0], strict=True)]


def _most(config: SJFBConfig, done: float) -> Iterations:
    """The largest n and m at this point of training; all updates together are limited by sjfb.grow, too."""
    grad = 1 if config.variant in ("jfb", "implicit") else config.grad
    if config.variant == "stochastic":
        both = limited(config, done, config.no_grad + grad)
        return Iterations(min(config.no_grad, both - 1), min(grad, both))
    both = limited(config, done, config.no_grad + grad)
    m = min(grad, both)
    return Iterations(min(config.no_grad, both - m), m)


def _means(config: SJFBConfig, done: float) -> tuple[float, float]:
    most_n, most_m = _most(config, done)
    if config.variant != "stochastic":
        return most_n, most_m
    means = [(1 + min(most_m, limited(config, done, n + most_m) - n)) / 2 for n in range(most_n + 1)]
    return most_n / 2, sum(means) / len(means)
