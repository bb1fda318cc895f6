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
from fpdm.models.implicit import Constants, ImplicitLayer, LoopConstants, iterate, iterate_until
from fpdm.precision import under_autocast


class FixedPointDiT(Denoiser, PyTorchModelHubMixin, license="apache-2.0"):
    """`pre_depth` blocks, the implicit layer, `post_depth` blocks. Other sizes: see `Denoiser`.

    pre_post_timestep_conditioning: condition pre blocks, post blocks and the head on
        timestep + label. The default is the paper's form, the label alone.
    implicit_depth, injection, loop_embedding: blocks in the implicit layer, how the pre blocks'
        output enters every update, and vectors for the updates; see `ImplicitLayer`. The defaults are the paper's.
    early_head: a final layer of its own for the exit with this number; see `forward`. 0 for none.
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
        if early_head:
            self._check_exit(f"early_head={early_head}", early_head)
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
        inside = self.implicit.blocks if self.inside_update(self.early_head) else ()  # which are also called one by one
        return [*self.pre_blocks, self.implicit, *inside, *self.post_blocks]

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
        exits: also predict from the tokens after these numbers of block passes: after pre blocks, after blocks of the
            first update (the first one without gradient, if there are any), or after whole updates. With the early head
            where it is for that number, with post blocks and head otherwise. Where a call has fewer, the last iterate.
        gradient: how the gradient of the solve is taken; by default it goes back through the updates with gradient.
        drop_labels: (B,) bool, which conditions to replace with the null one; without it, drawn
            at random in training mode.
        with_residuals: also return each update's residual, (B, iterations_no_grad + iterations).
        recompute: gradient checkpointing of every block and every update.
        """
        if tolerance is None:
            self._check_iterations(iterations, iterations_no_grad, gradient)
        for number in exits:
            self._check_exit(f"exits={tuple(exits)}", number)
            if self.inside_update(number) and gradient is not None and gradient.adjoint is not None:
                raise ValueError(f"exits={tuple(exits)} with an adjoint: exit {number} is inside an update")
        if anderson and torch.is_grad_enabled():
            raise ValueError(f"anderson={anderson}: only for sampling, under torch.no_grad() or inference_mode()")
        c_y = self.y_embedder(y, drop_labels)  # (B, D)
        c = self.t_embedder(t) + c_y
        c_pre_post = c if self.pre_post_timestep_conditioning else c_y

        x_pre = self.embed(x)  # (B, N, D)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.pre_blocks, start=1):  # Eq. 1
            x_pre = apply_layer(block, x_pre, block.modulation(c_pre_post), recompute)
            if number in exits:
                kept[number] = x_pre
        state = self.implicit.injection.start(x_pre, self._start(init, x_pre))

        constants = self.implicit.constants(x_pre, c)  # Eq. 2
        accelerate = Anderson(anderson) if anderson else None
        injection, inside = self.implicit.injection, any(map(self.inside_update, exits))

        def keep(updates: int, state: Tensor) -> None:
            if (number := self.exit_after(updates)) in exits:
                kept[number] = injection.solution(state if tolerance is None else state.clone())

        def keep_inside(block: int, stream: Tensor) -> None:
            if (number := self.exit_after(0) + block) in exits and block < self.implicit.depth:
                kept[number] = stream

        def advance(state: Tensor, constants: LoopConstants, loop: int) -> Tensor:
            if inside and loop == 0:
                return self.implicit.by_block(state, constants, keep_inside, recompute)
            return apply_layer(self.implicit, state, constants, recompute)

        if tolerance is not None:
            at_most = torch.as_tensor(iterations, device=state.device).expand(len(state))
            with torch.no_grad():
                state, residuals, counts, fallbacks = iterate_until(
                    advance, state, constants, tolerance, at_most, accelerate, keep
                )
        else:
            state, found = self._iterate_without_grad(
                advance, state, constants, iterations_no_grad, with_residuals, keep
            )
            update = self._update_with_grad(advance, constants, gradient, recompute)
            state, more = iterate(
                update, state, iterations, iterations_no_grad, with_residuals, accelerate, keep
            )  # Eq. 3
            residuals, counts = torch.stack(found + more, dim=1) if with_residuals else None, None
            fallbacks = accelerate.fallbacks if accelerate else None

        h = injection.solution(state)
        early = tuple(self._predict_early(number, kept.get(number, h), c_pre_post, recompute) for number in exits)
        prediction = self.decode(h, c_pre_post, recompute)  # Eq. 4
        jacobian = None
        if gradient is not None and gradient.jacobian is not None:
            last = constants.at(iterations_no_grad + iterations - 1)
            # Its forward as it is: a compiled one cannot be differentiated twice.
            jacobian = squared_jacobian(lambda state: self.implicit.forward(state, last), state, gradient.jacobian)
        return DenoiserOutput(prediction, h, residuals, counts, fallbacks, early, jacobian)

    def _update_with_grad(
        self,
        advance: Callable[[Tensor, LoopConstants, int], Tensor],
        constants: Constants,
        gradient: Gradient | None,
        recompute: bool,
    ) -> Callable[[Tensor, int], Tensor]:
        """An update with number `loop`, whose gradient is taken as asked."""

        def plain(state: Tensor, loop: int) -> Tensor:
            return advance(state, constants.at(loop), loop)

        if gradient is None:
            return plain
        if gradient.adjoint is not None:
            # The adjoint equation goes through an update's graph many times, which a compiled one may not allow.
            layer = self.implicit.forward
            return lambda state, loop: gradient.adjoint(
                lambda state: apply_layer(layer, state, constants.at(loop), recompute), state
            )
        if gradient.damping != 1:
            return lambda state, loop: state + gradient.damping * (plain(state, loop) - state)
        return plain

    def _predict_early(self, number: int, h: Tensor, c: Tensor, recompute: bool) -> Tensor:
        """Prediction from the tokens h (B, N, D) of an exit, by the early head if it is for that number."""
        return self.head(h, c, early=True) if number == self.early_head else self.decode(h, c, recompute)

    def _iterate_without_grad(self, advance, state, constants, iterations, with_residuals, on_update):
        if iterations == 0:
            return state, []
        constants = constants.detach()
        with torch.no_grad():
            state, residuals = iterate(
                lambda state, loop: advance(state, constants.at(loop), loop),
                state.detach(), iterations, 0, with_residuals, None, on_update,
            )  # fmt: skip
        # Autocast caches the casts of the weights just used. These carry no gradient, so the
        # next updates would silently train nothing (pytorch#112583; seen with torch 2.7, no
        # longer with 2.15).
        if under_autocast(state):
            torch.clear_autocast_cache()
        return state, residuals

    def _check_exit(self, said: str, number: int) -> None:
        first, depth = self.exit_after(1), self.implicit.depth
        if number < 1 or (number > first and self.inside_update(number)):
            raise ValueError(
                f"{said}: exits are after 1 to {first} block passes, or after whole updates of {depth}, as in "
                f"{first + depth}"
            )

    def inside_update(self, number: int) -> bool:
        """Whether an exit is inside an update."""
        return number > self.exit_after(0) and (number - self.exit_after(0)) % self.implicit.depth != 0

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
