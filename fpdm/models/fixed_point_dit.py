"""FixedPointDiT (FPDM, Bai & Melas-Kyriazi, 2024): pre blocks, one implicit layer, post blocks.

B batch, C latent channels, H and W height and width of the latent, N tokens, D width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from fpdm.block_options import BlockOptions
from fpdm.conditionings import Conditions
from fpdm.injections import INJECTIONS
from fpdm.models.anderson import Anderson
from fpdm.models.blocks import DiTBlock, apply_layer
from fpdm.models.dit import Denoiser, DenoiserOutput
from fpdm.models.gradients import Gradient, squared_jacobian
from fpdm.models.implicit import Constants, ImplicitLayer, iterate, iterate_until
from fpdm.precision import under_autocast


class FixedPointDiT(Denoiser, PyTorchModelHubMixin, license="apache-2.0"):
    """`pre_depth` blocks, the implicit layer, `post_depth` blocks. Other sizes: see `Denoiser`.

    pre_post_timestep_conditioning: condition pre blocks, post blocks and the head on
        timestep + label. The default is the paper's form, the label alone.
    implicit_depth, injection, loop_embedding: blocks in the implicit layer, how the pre blocks'
        output enters every update, and vectors for the updates; see `ImplicitLayer`. The defaults are the paper's.
    reuse: whether samplers start solves from earlier solutions unless told otherwise; None: as the injection says,
        which is true for the paper's. Checkpoints have the answer in their config.json.
    qk_norm, norm, mlp, positions, exclude_own_value: what all blocks are made of; see `BlockOptions`.
    num_classes, class_dropout, conditioning, attribute_mean, attribute_std: what the network is conditioned on; see
        `Conditions`.
    """

    family = "FPDM"

    def __init__(
        self,
        input_size: int | list[int] = 32,
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
        implicit_depth: int = 1,
        injection: str = "mlp",
        loop_embedding: int = 0,
        reuse: bool | None = None,
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
        least = {"pre_depth": 0, "post_depth": 0, "implicit_depth": 1, "loop_embedding": 0}
        for (name, low), value in zip(
            least.items(), (pre_depth, post_depth, implicit_depth, loop_embedding), strict=True
        ):
            if value < low:
                raise ValueError(f"{name}={value}: at least {low}")
        if injection not in INJECTIONS:
            raise ValueError(f"injection={injection!r}: choose one of {', '.join(INJECTIONS)}")
        if reuse and not INJECTIONS[injection].sees_input:
            raise ValueError(
                f"reuse=true with injection={injection}: updates do not see the new input, so a solve that starts from "
                "an older solution would return it; leave reuse out, or choose another injection"
            )
        options.check(hidden_size, num_heads, self.token_shape[0], implicit_depth)
        self.pre_post_timestep_conditioning = pre_post_timestep_conditioning
        block = partial(DiTBlock, hidden_size, num_heads, options, self.grid)
        self.pre_blocks = nn.ModuleList(block() for _ in range(pre_depth))
        self.implicit = ImplicitLayer(
            hidden_size, num_heads, implicit_depth, injection, loop_embedding, options, self.grid
        )
        self.post_blocks = nn.ModuleList(block() for _ in range(post_depth))
        self.reusable = INJECTIONS[injection].sees_input
        self.reuse = INJECTIONS[injection].reuses if reuse is None else reuse
        self._hub_mixin_config["reuse"] = self.reuse  # saved, so a later default does not change an earlier checkpoint
        self.initialise()
        self.implicit.injection.initialise()

    @property
    def update_blocks(self) -> int:
        return self.implicit.depth

    def stacks(self) -> list[nn.ModuleList]:
        return [self.pre_blocks, self.post_blocks]

    def exit_stack(self) -> nn.ModuleList:
        return self.post_blocks

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
        exits: Sequence[int] = (),
        gradient: Gradient | None = None,
        drop_labels: Tensor | None = None,
        with_residuals: bool = False,
        recompute: bool = False,
    ) -> DenoiserOutput:
        """x (B, C, H, W) noisy latents, t (B,) timesteps, y (B,) labels or (B, A) attributes.

        iterations: updates of the implicit layer with gradient (S-JFB's m).
        iterations_no_grad: updates before them that build no graph (S-JFB's n).
        tolerance: stop each sample once its residual is at most this; `iterations` is then the
            maximum, for all samples or per sample (B,). Only for sampling.
        init: (B, N, D) start of the iteration, such as the solution of an earlier call, or a function
            from the default start (B, N, D) to another; the default is the pre blocks' output (with the injection
            `lanes`, twice that).
        anderson: memory of Anderson acceleration, 0 for plain iteration; has an effect from three
            iterations on. Only for sampling.
        exits: also predict from the iterates after these numbers of updates, counted from the first one without
            gradient: with the early head where it is for that number, with post blocks and head otherwise. Where there
            were fewer updates, it is the last iterate.
        gradient: how the gradient of the solve is taken; by default it goes back through the updates with gradient.
        drop_labels: (B,) bool, which conditions to replace with the null one; without it, drawn
            at random in training mode.
        with_residuals: also return each update's residual, (B, iterations_no_grad + iterations).
        recompute: gradient checkpointing of every block and every update.
        """
        if tolerance is None:
            self._check_iterations(iterations, iterations_no_grad, gradient)
        if any(number < 1 for number in exits):
            raise ValueError(f"exits={tuple(exits)}: numbers of updates, at least 1")
        if anderson and torch.is_grad_enabled():
            raise ValueError(f"anderson={anderson}: only for sampling, under torch.no_grad() or inference_mode()")
        c_y = self.y_embedder(y, drop_labels)  # (B, D)
        c = self.t_embedder(t) + c_y
        c_pre_post = c if self.pre_post_timestep_conditioning else c_y

        x_pre = self.embed(x)  # (B, N, D)
        for block in self.pre_blocks:  # Eq. 1
            x_pre = apply_layer(block, x_pre, block.modulation(c_pre_post), recompute)
        state = self.implicit.injection.start(x_pre, self._start(init, x_pre))

        constants = self.implicit.constants(x_pre, c)  # Eq. 2
        accelerate = Anderson(anderson) if anderson else None
        kept: dict[int, Tensor] = {}

        def keep(updates: int, state: Tensor) -> None:
            if updates in exits:
                kept[updates] = state if tolerance is None else state.clone()

        if tolerance is not None:
            at_most = torch.as_tensor(iterations, device=state.device).expand(len(state))
            with torch.no_grad():
                state, residuals, counts, fallbacks = iterate_until(
                    self.implicit, state, constants, tolerance, at_most, accelerate, keep
                )
        else:
            state, found = self._iterate_without_grad(state, constants, iterations_no_grad, with_residuals, keep)

            update = self._update_with_grad(constants, gradient, recompute)
            state, more = iterate(
                update, state, iterations, iterations_no_grad, with_residuals, accelerate, keep
            )  # Eq. 3
            residuals, counts = torch.stack(found + more, dim=1) if with_residuals else None, None
            fallbacks = accelerate.fallbacks if accelerate else None

        h = self.implicit.injection.solution(state)
        early = tuple(self._predict_early(number, kept.get(number, state), c_pre_post, recompute) for number in exits)
        prediction = self.decode(h, c_pre_post, recompute)  # Eq. 4
        jacobian = None
        if gradient is not None and gradient.jacobian is not None:
            last = constants.at(iterations_no_grad + iterations - 1)
            # Its forward as it is: a compiled one cannot be differentiated twice.
            jacobian = squared_jacobian(lambda state: self.implicit.forward(state, last), state, gradient.jacobian)
        return DenoiserOutput(prediction, h, residuals, counts, fallbacks, early, jacobian)

    def _update_with_grad(
        self, constants: Constants, gradient: Gradient | None, recompute: bool
    ) -> Callable[[Tensor, int], Tensor]:
        """An update with number `loop`, whose gradient is taken as asked."""

        # The adjoint equation goes through an update's graph many times, which a compiled one may not allow.
        layer = self.implicit if gradient is None or gradient.adjoint is None else self.implicit.forward

        def plain(state: Tensor, loop: int) -> Tensor:
            return apply_layer(layer, state, constants.at(loop), recompute)

        if gradient is None:
            return plain
        if gradient.adjoint is not None:
            return lambda state, loop: gradient.adjoint(lambda state: plain(state, loop), state)
        if gradient.damping != 1:
            return lambda state, loop: state + gradient.damping * (plain(state, loop) - state)
        return plain

    def _predict_early(self, number: int, state: Tensor, c: Tensor, recompute: bool) -> Tensor:
        """Prediction of the iterate after `number` updates, by the early head if it is for that number."""
        h = self.implicit.injection.solution(state)
        return self.head(h, c, early=True) if number == self.early_head else self.decode(h, c, recompute)

    def _iterate_without_grad(self, state, constants, iterations, with_residuals, on_update):
        if iterations == 0:
            return state, []
        constants = constants.detach()
        with torch.no_grad():
            state, residuals = iterate(
                lambda state, loop: self.implicit(state, constants.at(loop)),
                state.detach(), iterations, 0, with_residuals, None, on_update,
            )  # fmt: skip
        # Autocast caches the casts of the weights just used. These carry no gradient, so the
        # next updates would silently train nothing (pytorch#112583; seen with torch 2.7, no
        # longer with 2.15).
        if under_autocast(state):
            torch.clear_autocast_cache()
        return state, residuals

    def _check_iterations(self, iterations: int, iterations_no_grad: int, gradient: Gradient | None) -> None:
        if iterations < 0 or iterations_no_grad < 0:
            raise ValueError(f"iterations={iterations}, iterations_no_grad={iterations_no_grad}: at least 0")
        if iterations == 0 and iterations_no_grad == 0:
            raise ValueError("iterations=0: the implicit layer needs at least one update")
        if gradient is not None and gradient.adjoint is not None and iterations != 1:
            raise ValueError(f"iterations={iterations} with an adjoint: exactly 1 update carries the gradient")
        if iterations == 0 and self.training and torch.is_grad_enabled():
            raise ValueError("iterations=0 while training: at least one update must carry the gradient")

    def _start(self, init: Tensor | Callable[[Tensor], Tensor] | None, x_pre: Tensor) -> Tensor | None:
        if init is None:
            return None
        if not self.reusable:
            raise ValueError("init with injection=none: no update would see the new input; leave init out")
        injection = self.implicit.injection
        h = init if isinstance(init, Tensor) else init(injection.solution(injection.start(x_pre)))
        if h.shape != x_pre.shape:
            raise ValueError(f"init has shape {tuple(h.shape)}, this call needs {tuple(x_pre.shape)}")
        return h
