"""The cost of model calls, in block passes (the paper's unit) and in FLOPs; the numbers come from the model."""

from collections.abc import Iterable
from typing import NamedTuple


class ForwardCost(NamedTuple):
    """Cost of one model call for one image: an explicit part, and a part for every update of the implicit layer.

    Block passes count transformer blocks (the paper's Sec. 4.2: pre + iterations + post, with one block in an update).
    update_blocks is 0 for a model without an implicit layer (DiT), which has no iterations. An early exit that shares
    the post blocks and the final layer costs exit_blocks and exit_flops; one with a head of its own costs head_flops.
    FLOPs are 2 per multiply-add of the matrix products and attention, as counted by torch's own counter; not
    elementwise work.
    """

    explicit_blocks: int
    update_blocks: int = 0
    explicit_flops: int = 0
    update_flops: int = 0
    exit_blocks: int = 0
    exit_flops: int = 0
    head_flops: int = 0

    def with_exit(self, own_head: bool) -> "ForwardCost":
        """The cost of a call that also decodes an early exit. own_head: by a head of its own."""
        return self._replace(
            explicit_blocks=self.explicit_blocks + (0 if own_head else self.exit_blocks),
            explicit_flops=self.explicit_flops + (self.head_flops if own_head else self.exit_flops),
        )

    @property
    def iterative(self) -> bool:
        """Whether a call has iterations."""
        return self.update_blocks > 0

    def blocks(self, iterations: float | None) -> float:
        """Block passes of a call; iterations: updates in it, None for an explicit model."""
        return self.explicit_blocks + (iterations or 0) * self.update_blocks

    def last_exit(self, iterations: float | None) -> float:
        """Number of the last exit of a call: the block passes before its post blocks."""
        return self.blocks(iterations) - self.exit_blocks

    @property
    def first_exit(self) -> float:
        """Number of the exit after the first update (block of a DiT)."""
        return self.last_exit(1) if self.iterative else 1

    def updates(self, block_passes: float, calls: int = 1) -> float:
        """Updates in `block_passes` over `calls` calls: the inverse of `blocks`, summed over the calls."""
        return (block_passes - calls * self.explicit_blocks) / max(self.update_blocks, 1)

    def total_blocks(self, iterations: Iterable[float | None]) -> float:
        """Block passes of a sampling run, given the iterations of each call."""
        counts = [count or 0 for count in iterations]
        return self.explicit_blocks * len(counts) + self.update_blocks * sum(counts)

    def flops(self, iterations: float | None) -> float:
        """FLOPs of a call."""
        return self.explicit_flops + (iterations or 0) * self.update_flops

    def total_flops(self, iterations: Iterable[float | None]) -> float:
        """FLOPs of a sampling run, given the iterations of each call."""
        return sum(map(self.flops, iterations))

    def training_flops(self, n: float = 0, m: float = 0) -> float:
        """FLOPs of one image in a training step with n updates without gradient and m with.

        The backward pass costs twice the forward; what gradient checkpointing recomputes is not counted.
        """
        return 3 * self.explicit_flops + (n + 3 * m) * self.update_flops
