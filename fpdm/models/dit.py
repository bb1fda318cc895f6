"""DiT (Peebles & Xie, 2023), the explicit baseline, and what FixedPointDiT shares with it.

B batch, C latent channels, H and W height and width of the latent, N tokens, D width.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from timm.layers import PatchEmbed
from torch import Tensor, nn

from fpdm.block_options import BlockOptions
from fpdm.conditionings import CONDITIONINGS, Conditions
from fpdm.extent import height_width, said
from fpdm.models.blocks import (
    DiTBlock,
    FinalLayer,
    TimestepEmbedder,
    apply_layer,
    sincos_positions,
)
from fpdm.models.card import model_card
from fpdm.precision import for_stream


class DenoiserOutput(NamedTuple):
    """What one call of a denoiser returns.

    prediction: (B, C, H, W), or (B, 2C, H, W) with learned variance, float32.
    solution: (B, N, D) last iterate of the implicit layer, which can be passed as `init` at
        the next timestep; None for a DiT.
    residuals: (B, iterations) ||g(h) - h|| / ||g(h)|| of each update, on request. With a tolerance
        they are always there, with NaN after a sample's last update.
    counts: (B,) number of updates per sample, with a tolerance.
    fallbacks: (B,) rejected steps of Anderson acceleration per sample, where it is used.
    early: a prediction, as above, for each of the requested exits.
    jacobian: (B,) squared size of the update's Jacobian at the last iterate, on request.
    """

    prediction: Tensor
    solution: Tensor | None = None
    residuals: Tensor | None = None
    counts: Tensor | None = None
    fallbacks: Tensor | None = None
    early: tuple[Tensor, ...] = ()
    jacobian: Tensor | None = None


class Denoiser(nn.Module):
    """Patch embedding, conditioning and output head around a stack of blocks.

    input_size: of the latent: one number for a square, or [height, width]; patch_size must divide both.
    in_channels: latent channels. learn_sigma: predict the variance too, with twice the output channels.
    conditions: what the network is conditioned on. options: what the blocks are made of. The constructors of both
        families take them one by one.
    early_head: a final layer of its own for the exit with this number, which is after so many block passes; 0 for none.
    """

    family: str  # DiT or FPDM
    update_blocks = 0  # blocks in one update of the implicit layer; 0: no implicit layer, no iterations
    reusable = False  # whether a solve may start from an earlier solution
    reuse = False  # whether samplers do so unless told otherwise

    def __init__(
        self,
        input_size: int | list[int],
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        num_heads: int,
        conditions: Conditions,
        learn_sigma: bool,
        early_head: int,
        options: BlockOptions,
    ):
        super().__init__()
        self.latent_size = height, width = height_width("input_size", input_size)
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not divide input_size={said(input_size)}: choose another patch, or a "
                f"height and a width that are multiples of {patch_size}"
            )
        if hidden_size % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide hidden_size={hidden_size}")
        if early_head < 0:
            raise ValueError(f"early_head={early_head}: at least 1, or 0 for none")
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.num_classes = conditions.num_classes
        self.class_dropout = conditions.class_dropout
        self.early_head = early_head
        self.options = options
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.grid = (height // patch_size, width // patch_size)

        self.x_embedder = PatchEmbed(self.latent_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = CONDITIONINGS[conditions.conditioning](conditions, hidden_size)
        if options.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, *self.token_shape))
        else:
            fixed = sincos_positions(hidden_size, *self.grid) if options.positions == "sincos" else None
            self.register_buffer("pos_embed", fixed, persistent=False)
        head = (hidden_size, patch_size, self.out_channels, options.norm)
        self.final_layer = FinalLayer(*head)
        self.early_layer = FinalLayer(*head) if early_head else None

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        """The README.md that `save_pretrained` and `push_to_hub` write."""
        name = type(self).__name__
        usage = f"```python\nfrom fpdm.models import {name}\n\nmodel = {name}.from_pretrained(THIS)\n```"
        return model_card(self, self.family, {}, usage)

    @property
    def iterative(self) -> bool:
        """Whether a call takes iterations: the only difference between families that other code needs."""
        return self.update_blocks > 0

    @property
    def conditioned_on(self) -> str:
        """What of a batch of latents is its condition `y`: labels or attributes."""
        return self.y_embedder.of

    @property
    def explicit_blocks(self) -> int:
        """Block passes of one call, without the implicit layer's."""
        return sum(len(stack) for stack in self.stacks())

    def stacks(self) -> list[nn.ModuleList]:
        """The explicit blocks, stack by stack, each block called as `block(h, constants)`."""
        raise NotImplementedError

    def exit_after(self, updates: int) -> int:
        """Number of the exit after so many updates (blocks of a DiT): the block passes before it."""
        if not self.iterative:
            return updates
        return self.explicit_blocks - len(self.exit_stack()) + updates * self.update_blocks

    def exit_stack(self) -> nn.ModuleList | list:
        """The explicit blocks through which an early exit passes before the final layer."""
        return []

    def decode(self, tokens: Tensor, c: Tensor, recompute: bool = False) -> Tensor:
        """Tokens (B, N, D) of any exit -> prediction (B, C or 2C, H, W): the blocks of `exit_stack`, then the head."""
        for block in self.exit_stack():
            tokens = apply_layer(block, tokens, block.modulation(c), recompute)
        return self.head(tokens, c)

    def layers(self) -> list[nn.Module]:
        """All layers called as `layer(h, constants)`. They take nearly all of the time, and are what is compiled."""
        return [block for stack in self.stacks() for block in stack]

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, D): number of tokens, and their width."""
        rows, columns = self.grid
        return rows * columns, self.hidden_size

    @property
    def device(self) -> torch.device:
        return self.final_layer.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer.linear.weight.dtype

    def embed(self, x: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> tokens (B, N, D), the start of the residual stream.

        Under autocast the stream is float32, whatever the type of the weights, and so is all that blocks add to it.
        """
        tokens = for_stream(self.x_embedder(x))
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        # The embedding is a transposed view. Without a copy, everything after it would run on strided memory.
        return tokens.contiguous()

    def head(self, tokens: Tensor, c: Tensor, early: bool = False) -> Tensor:
        """Tokens (B, N, D) -> prediction (B, out_channels, H, W) in float32. early: by the early head."""
        layer = self.early_layer if early else self.final_layer
        patches = layer(tokens, c).float()  # (B, N, p*p*out_channels)
        patches = patches.reshape(-1, *self.grid, self.patch_size, self.patch_size, self.out_channels)
        return torch.einsum("bhwpqc->bchpwq", patches).reshape(-1, self.out_channels, *self.latent_size)

    def initialise(self) -> None:
        """DiT's initialisation: Xavier for linear maps, zero for modulations and the output,
        so that every block starts as the identity and the prediction as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))  # as a linear map
        nn.init.zeros_(self.x_embedder.proj.bias)
        self.y_embedder.initialise()
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        modulated = [m.adaLN_modulation[-1] for m in self.modules() if hasattr(m, "adaLN_modulation")]
        heads = [self.final_layer, *([self.early_layer] if self.early_head else [])]
        for layer in [*modulated, *(head.linear for head in heads)]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.options.positions == "learned":
            nn.init.normal_(self.pos_embed, std=0.02)


class DiT(Denoiser, PyTorchModelHubMixin, license="apache-2.0"):
    """`depth` blocks, each conditioned on timestep + label. Other sizes: see `Denoiser`.

    qk_norm, norm, mlp, positions, exclude_own_value: what all blocks are made of; see `BlockOptions`.
    num_classes, class_dropout, conditioning, attribute_mean, attribute_std: what the network is conditioned on; see
        `Conditions`.
    """

    family = "DiT"

    def __init__(
        self,
        input_size: int | list[int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        class_dropout: float = 0.1,
        learn_sigma: bool = True,
        early_head: int = 0,
        qk_norm: bool = False,
        norm: str = "layer",
        mlp: str = "gelu",
        positions: str = "sincos",
        exclude_own_value: bool = False,
        conditioning: str = "class",
        attribute_mean: list[float] | None = None,
        attribute_std: list[float] | None = None,
    ):
        options = BlockOptions(qk_norm, norm, mlp, positions, exclude_own_value)
        conditions = Conditions(num_classes, class_dropout, conditioning, attribute_mean, attribute_std)
        super().__init__(
            input_size, patch_size, in_channels, hidden_size, num_heads, conditions, learn_sigma, early_head, options
        )
        if depth < 0:
            raise ValueError(f"depth={depth}: at least 0")
        options.check(hidden_size, num_heads, self.token_shape[0], depth)
        if early_head > depth:
            raise ValueError(f"early_head={early_head}: there are only depth={depth} blocks")
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, options, self.grid) for _ in range(depth))
        self.initialise()

    def stacks(self) -> list[nn.ModuleList]:
        return [self.blocks]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        depth: int | None = None,
        exits: Sequence[int] = (),
        drop_labels: Tensor | None = None,
        recompute: bool = False,
    ) -> DenoiserOutput:
        """x (B, C, H, W) noisy latents, t (B,) timesteps, y (B,) labels or (B, A) attributes.

        depth: number of blocks to use, from the first; by default all. A new block is the identity, so training may
            begin with few. exits may be no larger.
        exits: also predict from the tokens after these numbers of blocks, 1 to depth, with the early head where it is
            for that number and with the final layer otherwise.
        drop_labels (B,) bool: which conditions to replace with the null one; without it, drawn
            at random in training mode.
        recompute: gradient checkpointing of every block.
        """
        blocks = self.blocks[:depth]
        self._check_exits(exits, len(blocks))
        c = self.t_embedder(t) + self.y_embedder(y, drop_labels)  # (B, D)
        tokens, kept = self.embed(x), {}  # (B, N, D)
        for number, block in enumerate(blocks, start=1):
            tokens = apply_layer(block, tokens, block.modulation(c), recompute)
            if number in exits:
                kept[number] = tokens
        early = tuple(self.head(kept[number], c, number == self.early_head) for number in exits)
        return DenoiserOutput(self.head(tokens, c), early=early)

    @staticmethod
    def _check_exits(exits: Collection[int], depth: int) -> None:
        for number in exits:
            if not 1 <= number <= depth:
                raise ValueError(f"exits={tuple(exits)}: exit {number} is not after one of {depth} blocks")
