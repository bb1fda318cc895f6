"""The implicit layer (Eq. 2 and 3), with one block or several, and the iteration that solves it.

B batch, N tokens, D width, h the iterate. The state of the iteration is h, unless the injection keeps more (two lanes).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fpdm.block_options import PAPER, BlockOptions
from fpdm.injections import INJECTIONS
from fpdm.models.anderson import Anderson, relative_residual
from fpdm.models.blocks import DiTBlock, apply_layer

Modulation = tuple[Tensor, ...]
# Parameters of checkpoints written before the layer had several blocks and injections -> their names now.
EARLIER_NAMES = {"injection.weight": "injection.project.weight", "injection.bias": "injection.project.bias"}
EARLIER_PREFIXES = {"mix_": "injection.mix_", "block.": "blocks.0."}


class LoopConstants(NamedTuple):
    """What one update needs besides the state. injected: the injection's tensors. modulations: six tensors (B, 1, D)
    of each block."""

    injected: tuple[Tensor, ...]
    modulations: tuple[Modulation, ...]


class Constants(NamedTuple):
    """What is constant over the iterations of one timestep, for each loop that differs from others.

    injected: of the injection. modulations: of the blocks; more than one with a loop embedding.
    """

    injected: tuple[tuple[Tensor, ...], ...]
    modulations: tuple[tuple[Modulation, ...], ...]

    def at(self, loop: int) -> LoopConstants:
        """Of update number `loop`, from 0. After the last modulations, these stay; after the last of several
        injections, the last two are used in turn."""
        beyond, period = loop - len(self.injected), min(len(self.injected), 2)
        injected = self.injected[loop if beyond < 0 else beyond % period - period]
        return LoopConstants(injected, self.modulations[min(loop, len(self.modulations) - 1)])

    def rows(self, chosen: Tensor) -> "Constants":
        """The constants of some samples; chosen (B,) bool."""
        return self._each(lambda part: part[chosen])

    def detach(self) -> "Constants":
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Constants":
        injected = tuple(tuple(map(change, parts)) for parts in self.injected)
        modulations = tuple(tuple(tuple(map(change, parts)) for parts in blocks) for blocks in self.modulations)
        return Constants(injected, modulations)


class ImplicitLayer(nn.Module):
    """g(h; x_pre, c) = Blocks(inject(h, x_pre); c), iterated to its fixed point. The paper's is one block with `mlp`.

    depth: K, the number of blocks: the cost of an update in block passes. injection: how x_pre enters, one of
    INJECTIONS. loop_embedding: R learned vectors (R, D), zero at the start, of which update i adds number i to the
    conditioning; updates after R keep the last one. 0 for none. options, grid: of the blocks, see `DiTBlock`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        depth: int = 1,
        injection: str = "mlp",
        loop_embedding: int = 0,
        options: BlockOptions = PAPER,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.depth = depth
        self.injection = INJECTIONS[injection](hidden_size, loop_embedding)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, options, grid) for _ in range(depth))
        self.loop_embedding = nn.Parameter(torch.zeros(loop_embedding, hidden_size)) if loop_embedding else None
        self.register_load_state_dict_pre_hook(_rename_earlier)

    def constants(self, x_pre: Tensor, c: Tensor) -> Constants:
        """x_pre (B, N, D) output of the pre blocks, c (B, D) conditioning."""
        injected = tuple(self.injection.constants(x_pre, loop) for loop in range(self.injection.loops))
        if self.loop_embedding is None:
            return Constants(injected, (tuple(block.modulation(c) for block in self.blocks),))
        # One product for all loops: (R, B, D) as R * B rows, of which each loop takes B.
        rows = (c + self.loop_embedding[:, None]).flatten(0, 1)
        blocks = [[part.split(len(c)) for part in block.modulation(rows)] for block in self.blocks]

        def of(i: int) -> tuple[Modulation, ...]:
            # A copy of each loop's own, because a compiled update must see the same layout in all loops.
            return tuple(torch.cat([part[i] for part in parts], dim=-1).chunk(6, dim=-1) for parts in blocks)

        return Constants(injected, tuple(map(of, range(len(self.loop_embedding)))))

    def forward(self, state: Tensor, constants: LoopConstants) -> Tensor:
        """One update, Eq. 3, in the type of the state: under autocast, float32 in and out."""
        stream = entered = self.injection.enter(state, constants.injected)
        for block, modulation in zip(self.blocks, constants.modulations, strict=True):
            stream = block(stream, modulation)
        return self.injection.leave(state, entered, stream, constants.injected)

    def by_block(
        self, state: Tensor, constants: LoopConstants, on_block: Callable[[int, Tensor], None], recompute: bool = False
    ) -> Tensor:
        """The same update; on_block is called with the number of each block, from 1, and the stream (B, N, D) after it.

        recompute: gradient checkpointing of every block.
        """
        stream = entered = self.injection.enter(state, constants.injected)
        for number, (block, modulation) in enumerate(zip(self.blocks, constants.modulations, strict=True), start=1):
            stream = apply_layer(block, stream, modulation, recompute)
            on_block(number, stream)
        return self.injection.leave(state, entered, stream, constants.injected)


def _rename_earlier(layer: ImplicitLayer, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Give the parameters of an earlier checkpoint their present names, in place."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        new = EARLIER_NAMES.get(own, own)
        for earlier, now in EARLIER_PREFIXES.items():
            if own.startswith(earlier):
                new = now + own.removeprefix(earlier)
        if new != own:
            state_dict[prefix + new] = state_dict.pop(name)


def iterate(
    update: Callable[[Tensor, int], Tensor],
    state: Tensor,
    iterations: int,
    first: int = 0,
    with_residuals: bool = False,
    accelerate: Anderson | None = None,
    on_update: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Fixed point iteration: `iterations` updates of the state (B, N, D), called as update(state, loop).

    first: number of the first update, from 0. accelerate: chooses each next state from a state and its update, the
    last one included; without it, the next state is the update. on_update: called with the number of updates made,
    counted from 0, and the state with which a solve of so many would end.

    Returns the last state and, on request, each update's residual (B,). The residuals stay on the device: nothing here
    waits for it.
    """
    residuals = []
    for loop in range(first, first + iterations):
        new = update(state, loop)
        if with_residuals:
            residuals.append(relative_residual(new, state))
        if accelerate is None:
            state = new
        elif loop < first + iterations - 1:
            state = accelerate(state, new)
        else:
            state = accelerate.settle(state, new)
        if on_update is not None:
            on_update(loop + 1, state if accelerate is None else accelerate.settled(new))
    return state, residuals


def iterate_until(
    update: Callable[[Tensor, LoopConstants, int], Tensor],
    state: Tensor,
    constants: Constants,
    tolerance: float,
    at_most: Tensor,
    accelerate: Anderson | None = None,
    on_update: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Iterate each sample until its residual is at most `tolerance`, or `at_most` (B,) updates are done.

    update: called with the states of some samples, their constants, and the number of the update, from 0.
    Finished samples leave the batch and cost nothing more. Every sample gets at least one update. state (B, N, D).
    on_update: called with the number of updates made and the states with which solves of at most so many would end, of
    all samples; the next update overwrites them.

    Returns the last states; the residual of each update, (B, most updates of any sample), with NaN where a sample had
    fewer; the number of updates per sample (B,); and, with Anderson acceleration, the number of rejected steps per
    sample (B,). Waits for the device at every update.
    """
    last, counts = state.clone(), torch.zeros(len(state), dtype=torch.long, device=state.device)
    fallbacks = None if accelerate is None else torch.zeros_like(counts)
    residuals = []
    active = torch.arange(len(state), device=state.device)
    while len(active):
        new = update(state, constants.at(len(residuals)), len(residuals))
        residual = relative_residual(new, state)
        counts[active] += 1
        going = ~(residual <= tolerance) & (counts[active] < at_most[active])  # a NaN residual continues
        chosen = new
        if accelerate is not None:
            chosen = accelerate(state, new)
            new = accelerate.settled(new)
            fallbacks[active] = accelerate.fallbacks
        last[active] = new.to(last.dtype)
        residuals.append(torch.full((len(counts),), torch.nan, device=state.device).index_copy(0, active, residual))
        if on_update is not None:
            on_update(len(residuals), last)
        state, constants, active = chosen[going], constants.rows(going), active[going]
        if accelerate is not None:
            accelerate.rows(going)
    return last, torch.stack(residuals, dim=1), counts, fallbacks
