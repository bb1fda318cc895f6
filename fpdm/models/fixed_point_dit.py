"""FixedPointDiT (FPDM, Bai & Melas-Kyriazi, 2024): pre blocks, one implicit layer, post blocks.

B batch, C latent channels, H height and width, N tokens, D width.
"""

from collections.abc import Callable

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from fpdm.models.anderson import Anderson
from fpdm.models.blocks import DiTBlock, apply_layer, under_autocast
from fpdm.models.dit import Denoiser, DenoiserOutput
from fpdm.models.implicit import Constants, ImplicitLayer, iterate, iterate_until


class FixedPointDiT(Denoiser, PyTorchModelHubMixin, license="apache-2.0"):
    """`pre_depth` blocks, the implicit layer, `post_depth` blocks. Other sizes: see `Denoiser`.

    pre_post_timestep_conditioning: condition pre blocks, post blocks and the head on
        timestep + label. The default is the paper's form, the label alone.
    """

    family = "FPDM"

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        num_heads: int = 16,
        pre_depth: int = 1,
        post_depth: int = 1,
        num_classes: int = 1000,
        class_dropout: float = 0.1,
        learn_sigma: bool = True,
        pre_post_timestep_conditioning: bool = False,
    ):
        super().__init__(
            input_size, patch_size, in_channels, hidden_size, num_heads, num_classes, class_dropout, learn_sigma
        )
        for name, depth in (("pre_depth", pre_depth), ("post_depth", post_depth)):
            if depth < 0:
                raise ValueError(f"{name}={depth}: at least 0")
        self.pre_post_timestep_conditioning = pre_post_timestep_conditioning
        self.pre_blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(pre_depth))
        self.implicit = ImplicitLayer(hidden_size, num_heads)
        self.post_blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads) for _ in range(post_depth))
        self.initialise()
        self.implicit.initialise_mixing()

    @property
    def update_blocks(self) -> int:
        return self.implicit.depth

    def stacks(self) -> list[nn.ModuleList]:
        return [self.pre_blocks, self.post_blocks]

    def layers(self) -> list[nn.Module]:
        return [*self.pre_blocks, self.implicit, *self.post_blocks]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        iterations: int | Tensor,
        iterations_no_grad: int = 0,
        tolerance: float | None = None,
        init: Tensor | Callable[[Tensor], Tensor] | None = None,
        anderson: int = 0,
        drop_labels: Tensor | None = None,
        with_residuals: bool = False,
        recompute: bool = False,
    ) -> DenoiserOutput:
        """x (B, C, H, H) noisy latents, t (B,) integer timesteps, y (B,) labels.

        iterations: updates of the implicit layer with gradient (S-JFB's m).
        iterations_no_grad: updates before them that build no graph (S-JFB's n).
        tolerance: stop each sample once its residual is at most this; `iterations` is then the
            maximum, for all samples or per sample (B,). Only for sampling.
        init: (B, N, D) start of the iteration, such as the solution of an earlier call, or a function
            from the pre blocks' output (B, N, D) to a start; by default, that output itself.
        anderson: memory of Anderson acceleration, 0 for plain iteration; has an effect from three
            iterations on. Only for sampling.
        drop_labels: (B,) bool, which labels to replace with the null label; without it, drawn
            at random in training mode.
        with_residuals: also return each update's residual, (B, iterations_no_grad + iterations).
        recompute: gradient checkpointing of every block and every update.
        """
        if tolerance is None:
            self._check_iterations(iterations, iterations_no_grad)
        if anderson and torch.is_grad_enabled():
            raise ValueError(f"anderson={anderson}: only for sampling, under torch.no_grad() or inference_mode()")
        c_y = self.y_embedder(y, drop_labels)  # (B, D)
        c = self.t_embedder(t) + c_y
        c_pre_post = c if self.pre_post_timestep_conditioning else c_y

        x_pre = self.embed(x)  # (B, N, D)
        for block in self.pre_blocks:  # Eq. 1
            x_pre = apply_layer(block, x_pre, block.modulation(c_pre_post), recompute)
        h = self._start(init, x_pre)

        constants = self.implicit.constants(x_pre, c)  # Eq. 2
        accelerate = Anderson(anderson) if anderson else None
        if tolerance is not None:
            return self._solve_to(tolerance, iterations, h, constants, c_pre_post, accelerate)
        h, residuals = self._iterate_without_grad(h, constants, iterations_no_grad, with_residuals)

        def update(h: Tensor) -> Tensor:
            return apply_layer(self.implicit, h, constants, recompute)

        h, more = iterate(update, h, iterations, with_residuals, accelerate)  # Eq. 3

        return DenoiserOutput(
            self._predict(h, c_pre_post, recompute),
            solution=h,
            residuals=torch.stack(residuals + more, dim=1) if with_residuals else None,
            fallbacks=accelerate.fallbacks if accelerate else None,
        )

    def _predict(self, h: Tensor, c: Tensor, recompute: bool = False) -> Tensor:
        """Post blocks and head: solution (B, N, D) -> prediction (B, C or 2C, H, H)."""
        for block in self.post_blocks:  # Eq. 4
            h = apply_layer(block, h, block.modulation(c), recompute)
        return self.head(h, c)

    @torch.no_grad()
    def _solve_to(
        self,
        tolerance: float,
        iterations: int | Tensor,
        h: Tensor,
        constants: Constants,
        c: Tensor,
        accelerate: Anderson | None,
    ) -> DenoiserOutput:
        at_most = torch.as_tensor(iterations, device=h.device).expand(len(h))
        h, *facts = iterate_until(self.implicit, h, constants, tolerance, at_most, accelerate)
        return DenoiserOutput(self._predict(h, c), h, *facts)

    def _iterate_without_grad(self, h, constants, iterations, with_residuals):
        if iterations == 0:
            return h, []
        constants = constants.detach()
        with torch.no_grad():
            h, residuals = iterate(lambda h: self.implicit(h, constants), h.detach(), iterations, with_residuals)
        # Autocast caches the casts of the weights just used. These carry no gradient, so the
        # next updates would silently train nothing (pytorch#112583; seen with torch 2.7, no
        # longer with 2.15).
        if under_autocast(h):
            torch.clear_autocast_cache()
        return h, residuals

    def _check_iterations(self, iterations: int, iterations_no_grad: int) -> None:
        if iterations < 0 or iterations_no_grad < 0:
            raise ValueError(f"iterations={iterations}, iterations_no_grad={iterations_no_grad}: at least 0")
        if iterations == 0 and iterations_no_grad == 0:
            raise ValueError("iterations=0: the implicit layer needs at least one update")
        if iterations == 0 and self.training and torch.is_grad_enabled():
            raise ValueError("iterations=0 while training: at least one update must carry the gradient")

    def _start(self, init: Tensor | Callable[[Tensor], Tensor] | None, x_pre: Tensor) -> Tensor:
        if init is None:
            return x_pre
        h = init if isinstance(init, Tensor) else init(x_pre)
        if h.shape != x_pre.shape:
            raise ValueError(f"init has shape {tuple(h.shape)}, this call needs {tuple(x_pre.shape)}")
        return h
