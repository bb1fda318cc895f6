"""Parts of a network: the transformer block with adaLN-Zero conditioning (DiT, Sec. 3.2), final layer, embeddings.

B batch, N tokens, D width.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fpdm.precision import for_stream

MLP_RATIO = 4
NORM_EPS = 1e-6

LayerNorm = partial(nn.LayerNorm, elementwise_affine=False, eps=NORM_EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D), shift and scale (B, 1, D)."""
    return x * (1 + scale) + shift


def apply_layer(layer: Callable[..., Tensor], h: Tensor, constants: tuple, recompute: bool) -> Tensor:
    """layer(h, constants), a DiTBlock or the implicit layer: h (B, N, D) -> (B, N, D).

    recompute: gradient checkpointing. Only h is kept for the backward pass, which runs the
    layer again; the result and its gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        # No layer uses random numbers, so their state need not be kept.
        return checkpoint(layer, h, constants, use_reentrant=False, preserve_rng_state=False)
    return layer(h, constants)


class DiTBlock(nn.Module):
    """Attention and MLP, each normalised, shifted, scaled and gated by the conditioning.

    `modulation` is a separate call because the implicit layer applies the block many
    times under one conditioning: it is computed once and passed in.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.norm1 = LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.norm2 = LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, MLP_RATIO * hidden_size, act_layer=partial(nn.GELU, approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """Conditioning (B, D) -> six (B, 1, D): shift, scale and gate of attention, then of the MLP."""
        return for_stream(self.adaLN_modulation(c))[:, None].chunk(6, dim=-1)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """x (B, N, D) -> (B, N, D), in the type of x: under autocast, float32 in and out."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_attn * self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens (B, N, D) and conditioning (B, D) -> patches (B, N, patch**2 * out_channels)."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def frequencies(count: int, device: torch.device | None = None, max_period: float = 10_000.0) -> Tensor:
    """Angular frequencies (count,) of the sinusoidal embedding, from 1 down to almost 1 / max_period."""
    exponents = torch.arange(count, dtype=torch.float32, device=device) / count
    return torch.exp(-math.log(max_period) * exponents)


def sinusoidal_embedding(t: Tensor, size: int) -> Tensor:
    """Timesteps (B,) -> (B, size) cosines and sines, always in float32.

    Half precision cannot hold t exactly (bfloat16 rounds 998 to 1000). Autocast lowers
    the precision of matrix products only, so this stays float32 under every precision.
    """
    angles = t.float()[:, None] * frequencies(size // 2, t.device)  # (B, size/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Timesteps (B,), whole numbers or not -> (B, D): sinusoidal embedding, then a two-layer MLP."""

    frequencies = 256

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequencies, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal_embedding(t, self.frequencies))


class LabelEmbedder(nn.Module):
    """Class labels (B,) -> (B, D). Row `num_classes` is the null label of classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int, class_dropout: float):
        super().__init__()
        self.num_classes = num_classes
        self.class_dropout = class_dropout
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor, drop_labels: Tensor | None = None) -> Tensor:
        """`drop_labels` (B,) bool says which labels become the null label. Without it,
        labels are dropped at random while training (probability `class_dropout`)."""
        if drop_labels is None and self.training and self.class_dropout > 0:
            drop_labels = torch.rand(y.shape, device=y.device) < self.class_dropout
        if drop_labels is not None:
            y = torch.where(drop_labels, self.num_classes, y)
        return self.embedding_table(y)


def sincos_positions(hidden_size: int, grid_size: int) -> Tensor:
    """Fixed 2D positions (1, grid_size**2, D): first half of the width encodes the column, second the row."""
    if hidden_size % 4:
        raise ValueError(f"hidden_size={hidden_size}: 2D sin-cos positions need a multiple of 4")
    quarter = hidden_size // 4
    omega = 1.0 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    along = torch.arange(grid_size, dtype=torch.float64)[:, None] * omega  # (grid, D/4)
    line = torch.cat([along.sin(), along.cos()], dim=1)  # (grid, D/2)
    columns = line[None, :, :].expand(grid_size, -1, -1)
    rows = line[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid_size**2, hidden_size).float()
