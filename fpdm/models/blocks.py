"""Parts of a network: the transformer block with adaLN-Zero conditioning (DiT, Sec. 3.2), final layer, embeddings.

B batch, N tokens, D width.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Mlp, SwiGLUPacked
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fpdm.block_options import PAPER, BlockOptions
from fpdm.models.attention import make_attention
from fpdm.models.norms import make_norm
from fpdm.precision import for_stream

MLP_RATIO = 4


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D), shift and scale (B, 1, D)."""
    return x * (1 + scale) + shift


def make_mlp(kind: str, hidden_size: int) -> nn.Module:
    """The MLP (B, N, D) -> (B, N, D) that is one of MLPS. SwiGLU is W_2 (silu(W_g x + b_g) * (W_x x + b_x)) + b_2.

    It has three maps instead of GELU's two, so it is 2/3 as wide for the same parameters: 8/3 D, to a multiple of 8.
    """
    if kind == "swiglu":
        hidden = max(8, 8 * round(MLP_RATIO * hidden_size * 2 / 3 / 8))
        return SwiGLUPacked(hidden_size, 2 * hidden)  # W_g and W_x as one map
    return Mlp(hidden_size, MLP_RATIO * hidden_size, act_layer=partial(nn.GELU, approximate="tanh"))


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

    grid: rows and columns of tokens, which only rotary positions need.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        options: BlockOptions = PAPER,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.norm1 = make_norm(options.norm, hidden_size)
        self.attn = make_attention(hidden_size, num_heads, options, grid)
        self.norm2 = make_norm(options.norm, hidden_size)
        self.mlp = make_mlp(options.mlp, hidden_size)
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

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int, norm: str = "layer"):
        super().__init__()
        self.norm_final = make_norm(norm, hidden_size)
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


def sincos_positions(hidden_size: int, rows: int, columns: int) -> Tensor:
    """Fixed 2D positions (1, rows * columns, D): first half of the width encodes the column, second the row."""
    if hidden_size % 4:
        raise ValueError(f"hidden_size={hidden_size}: 2D sin-cos positions need a multiple of 4")
    quarter = hidden_size // 4
    omega = 1.0 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    along = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * omega  # (longest, D/4)
    line = torch.cat([along.sin(), along.cos()], dim=1)  # (longest, D/2)
    column = line[None, :columns].expand(rows, -1, -1)
    row = line[:rows, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).reshape(1, rows * columns, hidden_size).float()
