"""Attention of a block: timm's, and one for what timm's does not have (rotary positions, own values excluded).

B batch, N tokens, D width, H heads, d = D / H width of a head.
"""

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F

from fpdm.block_options import BlockOptions
from fpdm.models.norms import QKNorm

ROTARY_BASE = 10_000.0  # RoPE's theta: frequencies go from 1 down towards 1 / ROTARY_BASE
NO_VALUE = 1e-6  # a value much shorter than this has no direction


def make_attention(hidden_size: int, num_heads: int, options: BlockOptions, grid: tuple[int, int] | None) -> Attention:
    """Self-attention (B, N, D) -> (B, N, D) with timm's parameter names. grid: rows and columns, N in all; only rotary
    positions need them."""
    if options.positions == "rotary" or options.exclude_own_value:
        return BlockAttention(hidden_size, num_heads, options, grid)
    return Attention(hidden_size, num_heads=num_heads, qkv_bias=True, qk_norm=options.qk_norm, norm_layer=QKNorm)


class BlockAttention(Attention):
    """timm's attention with rotary positions, with each token's own value excluded, or with both."""

    def __init__(self, hidden_size: int, num_heads: int, options: BlockOptions, grid: tuple[int, int] | None):
        super().__init__(hidden_size, num_heads=num_heads, qkv_bias=True, qk_norm=options.qk_norm, norm_layer=QKNorm)
        self.exclude_own_value = options.exclude_own_value
        self.rotary = options.positions == "rotary"
        if self.rotary:
            angles = rotary_angles(hidden_size // num_heads, *grid)
            self.register_buffer("cos", angles.cos().float(), persistent=False)
            self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, N, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        out = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, d)
        if self.exclude_own_value:
            out = without_own_value(out, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


def rotary_angles(head: int, rows: int, columns: int) -> Tensor:
    """Angles (N, d/2) in float64 of the d/2 pairs of a head's dimensions, for tokens in rows (axial rotary positions).

    The first half of the pairs turns by omega_i * row, the second by omega_i * column, with
    omega_i = 10,000^(-i / (d/4)), i = 0 .. d/4 - 1. head: d, a multiple of 4.
    """
    omega = ROTARY_BASE ** -(torch.arange(head // 4, dtype=torch.float64) / (head // 4))
    row, column = (torch.arange(length, dtype=torch.float64)[:, None] * omega for length in (rows, columns))
    both = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=-1)
    return both.flatten(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + d/2}) by its angle: (x_i + j x_{i + d/2}) exp(j angle).

    x (B, H, N, d), cos and sin (N, d/2) -> (B, H, N, d) in the type of x.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def without_own_value(out: Tensor, v: Tensor) -> Tensor:
    """z = o - (o . v^) v^ with v^ = v / |v|, in float32; a value of 0 excludes nothing (Looped-DiT, arXiv:2609.40305).

    out (B, H, N, d): o, what attention gives to each token. v (B, H, N, d): the token's own value.
    """
    own, given = v.float(), out.float()
    # Smooth at 0, unlike a division by |v|: no NaN in the gradient or in its derivatives.
    direction = own * torch.rsqrt(own.square().sum(-1, keepdim=True) + NO_VALUE**2)
    return (given - (given * direction).sum(-1, keepdim=True) * direction).to(out.dtype)
