"""Which blocks of a trained network become which blocks of a new one."""

from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import NamedTuple

from fpdm.models.dit import Denoiser

STACKS = {  # stack of blocks -> the setting of its depth
    "blocks": "depth",
    "pre_blocks": "pre_depth",
    "implicit.blocks": "implicit_depth",
    "post_blocks": "post_depth",
}


class Origin(NamedTuple):
    """Where the blocks of a stack are from.

    stack, source: names of the stacks in the network and in the source. numbers: for each block, the source's blocks
    whose mean it is; an empty range for a new one.
    """

    stack: str
    source: str
    numbers: list[range]


def _copied(blocks: int, count: int) -> list[range]:
    """One block for each, evenly spaced: number floor((k + 1/2) blocks / count) for k = 0 .. count - 1."""
    chosen = [(2 * k + 1) * blocks // (2 * count) for k in range(count)]
    return [range(number, number + 1) for number in chosen]


def _averaged(blocks: int, count: int) -> list[range]:
    """The mean of a range for each. The ranges follow each other; their lengths differ by at most one."""
    ends = [k * blocks // count for k in range(count + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


class InitRule(NamedTuple):
    """How the implicit blocks are made of a DiT's middle ones.

    choose: (number of those, number of implicit blocks) -> for each implicit block, the numbers of those whose mean it
    becomes, counted from the first. about: in words.
    """

    choose: Callable[[int, int], list[range]]
    about: str


INIT_RULES = {
    "copy": InitRule(_copied, "each is one of them, evenly spaced"),
    "average": InitRule(_averaged, "each is the mean of a range of them"),
}


def block_origins(network: Denoiser, source: Denoiser, rule: str = "copy") -> list[Origin]:
    """The origin of each stack of `network`. In the same family, blocks keep their order, and further ones are new.

    rule: for an FPDM from a DiT, one of INIT_RULES. ValueError if `source` has too many blocks, or too few for that.
    """
    if network.iterative != source.iterative:
        return _from_dit(network, source.explicit_blocks, rule)
    theirs = _depths(source)
    origins = []
    for stack, depth in _depths(network).items():
        if theirs[stack] > depth:
            raise ValueError(
                f"model.{STACKS[stack]} is {theirs[stack]} in the weights and {depth} in the network; set it to "
                f"{theirs[stack]} or more"
            )
        origins.append(Origin(stack, stack, [range(i, min(i + 1, theirs[stack])) for i in range(depth)]))
    return origins


def _from_dit(network: Denoiser, known: int, rule: str) -> list[Origin]:
    """Of a DiT with `known` blocks: its first ones, those that the rule makes of the middle ones, its last ones."""
    pre, core, post = _depths(network).values()
    if pre + core + post > known:
        raise ValueError(
            f"model.pre_depth={pre}, model.implicit_depth={core} and model.post_depth={post} are {pre + core + post} "
            f"blocks, and the weights are of a DiT with {known}; set fewer"
        )
    middle = INIT_RULES[rule].choose(known - pre - post, core)
    return [
        Origin("pre_blocks", "blocks", [range(i, i + 1) for i in range(pre)]),
        Origin("implicit.blocks", "blocks", [range(pre + part.start, pre + part.stop) for part in middle]),
        Origin("post_blocks", "blocks", [range(i, i + 1) for i in range(known - post, known)]),
    ]


def _depths(network: Denoiser) -> dict[str, int]:
    modules = dict(network.named_modules())
    return {stack: len(modules[stack]) for stack in STACKS if stack in modules}


def describe_origin(origin: Origin) -> Iterator[tuple[str, str]]:
    """(blocks, where they are from) in words; one pair for blocks that were next to each other."""

    def kind(pair: tuple[int, range]) -> tuple[str, int]:
        i, numbers = pair
        if len(numbers) > 1:
            return "mean", i
        return ("copy", numbers.start - i) if numbers else ("new", 0)

    for (found, _), group in groupby(enumerate(origin.numbers), kind):
        places, numbers = zip(*group, strict=True)
        theirs = _span(origin.source, numbers[0].start, numbers[-1].stop - 1)
        said = {"new": "new, the identity", "copy": theirs, "mean": f"the mean of {theirs}"}
        yield _span(origin.stack, places[0], places[-1]), said[found]


def _span(stack: str, first: int, last: int) -> str:
    return f"{stack}.{first}" if first == last else f"{stack}.{first}-{last}"
