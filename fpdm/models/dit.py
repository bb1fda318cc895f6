"""DiT (Peebles & Xie, 2023): the explicit baseline, a stack of distinct blocks."""

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from fpdm.models.blocks import DiTBlock, apply_layer
from fpdm.models.denoiser import Denoiser, DenoiserOutput


class DiT(Denoiser, PyTorchModelHubMixin, license="apache-2.0"):
    """`depth` blocks, each conditioned on timestep + label. Sizes: see `Denoiser`."""

    family = "DiT"

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        class_dropout: float = 0.1,
        learn_sigma: bool = True,
    ):
        super().__init__(
            input_size, patch_size, in_channels, hidden_size, num_heads, num_classes, class_dropout, learn_sigma
        )
        if depth < 0:
            raise ValueError(f"depth={depth}: at least 0")
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(depth))
        self.initialise()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, drop_labels: Tensor | None = None, recompute: bool = False
    ) -> DenoiserOutput:
        """x (B, C, H, H) noisy latents, t (B,) integer timesteps, y (B,) labels.

        drop_labels (B,) bool: which labels to replace by the null label; without it, drawn
        at random in training mode.
        recompute: gradient checkpointing of every block.
        """
        c = self.t_embedder(t) + self.y_embedder(y, drop_labels)  # (B, D)
        tokens = self.embed(x)  # (B, N, D)
        for block in self.blocks:
            tokens = apply_layer(block, tokens, block.modulation(c), recompute)
        return DenoiserOutput(self.head(tokens, c))
