"""What turns timesteps, labels and positions into vectors.

B batch, N tokens, D width.
"""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, size: int, max_period: float = 10_000.0) -> Tensor:
    """Timesteps (B,) -> (B, size) cosines and sines, always in float32.

    Half precision cannot hold t exactly (bfloat16 rounds 998 to 1000). Autocast lowers
    matrix products only, so what is written here stays as it is under every precision.
    """
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, size/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Integer timesteps (B,) -> (B, D): sinusoidal embedding, then a two-layer MLP."""

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
