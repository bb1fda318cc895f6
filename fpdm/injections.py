"""Injections: how the pre blocks' output enters every update of the implicit layer. A new one is one more entry of
INJECTIONS.

B batch, N tokens, D width. x_pre (B, N, D) is the pre blocks' output, h (B, N, D) the iterate. An update is

    stream = enter(state)            what the core's blocks get
    state  = leave(state, stream, Blocks(stream))

where the state is the iterate itself, unless `start` and `solution` say otherwise. What depends on x_pre alone is
computed once per timestep, in `constants`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.precision import for_stream, within_float16

NORM_EPS = 1e-6


class Injection(nn.Module):
    """Base class: the iterate enters the blocks unchanged, and what they return is the next iterate.

    sees_input: whether a solve that starts from an older solution sees x_pre. Otherwise it would never see the new x,
    so solutions cannot be reused.
    every_update: whether x_pre enters at every update, and not only at the start. If not, updates without gradient
    would cut all that is before the loop from the gradient.
    loops: number of loops whose constants differ; the last two are used in turn after that (or the only one).
    lanes: width of the state, in units of D.
    reuses: whether samplers start solves from earlier solutions unless told otherwise: only where it was measured to
    help.
    """

    reuses = False
    sees_input = True
    every_update = True
    loops = 1
    lanes = 1

    def __init__(self, hidden_size: int, loops: int):
        """hidden_size: D. loops: the layer's loop_embedding, the number of loops with weights of their own."""
        super().__init__()

    def initialise(self) -> None:
        """Initial values that differ from the network's (Xavier for linear maps); called after those are set."""

    def constants(self, x_pre: Tensor, loop: int) -> tuple[Tensor, ...]:
        """What an update needs besides the state, in tensors with B in front. loop: 0 to `loops` - 1."""
        return ()

    def start(self, x_pre: Tensor, h: Tensor | None = None) -> Tensor:
        """The state before the first update. h (B, N, D): an iterate to start from, of which this is the state; by
        default, the start is x_pre alone."""
        return x_pre if h is None else h

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """State -> input (B, N, D) of the blocks, in the state's type: float32 under autocast."""
        return state

    def leave(self, state: Tensor, stream: Tensor, out: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """The next state; stream, out (B, N, D): what entered the blocks and what they returned."""
        return out

    def solution(self, state: Tensor) -> Tensor:
        """State -> iterate h (B, N, D), which the post blocks decode and later calls reuse."""
        return state


class NoInjection(Injection):
    """Nothing: x_pre is only where the iteration starts."""

    sees_input = False
    every_update = False


class MixingInjection(Injection):
    """The paper's Eq. 2 and 3: W_2 gelu(W_1 [h; u] + b_1) + b_2 with u = W_p x_pre + b_p.

    The GELU is the tanh form, as everywhere in the network.

    W_1 is stored as two halves, W_1 [h; u] = W_1h h + W_1u u. The second does not depend on h, so it is computed once
    per timestep and not at every update.
    """

    reuses = True

    def __init__(self, hidden_size: int, loops: int):
        super().__init__(hidden_size, loops)
        self.project = nn.Linear(hidden_size, hidden_size)  # W_p, b_p
        self.mix_h = nn.Linear(hidden_size, 2 * hidden_size, bias=False)  # W_1h
        self.mix_u = nn.Linear(hidden_size, 2 * hidden_size)  # W_1u, b_1
        self.mix_out = nn.Linear(2 * hidden_size, hidden_size)  # W_2, b_2

    def initialise(self) -> None:
        """Xavier initialisation of W_1 as one (2D, 2D) map, then split into its halves."""
        joint = torch.empty(self.mix_h.out_features, 2 * self.mix_h.in_features)
        nn.init.xavier_uniform_(joint)
        with torch.no_grad():
            self.mix_h.weight.copy_(joint[:, : self.mix_h.in_features])
            self.mix_u.weight.copy_(joint[:, self.mix_h.in_features :])

    def constants(self, x_pre: Tensor, loop: int) -> tuple[Tensor, ...]:
        u = self.project(within_float16(x_pre))  # Eq. 2
        return (self.mix_u(u),)  # (B, N, 2D)

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        # Under autocast the maps return 16 bits. The stream that the blocks add to stays float32, as in a DiT.
        mixed = self.mix_out(F.gelu(self.mix_h(within_float16(state)) + constants[0], approximate="tanh"))
        return mixed.to(state.dtype)


class AddInjection(Injection):
    """h + W x_pre + b, with W and b 0 at the start. It costs nothing per update.

    The iterate stays on the residual stream: it grows from update to update, and keeps what it started from.
    """

    def __init__(self, hidden_size: int, loops: int):
        super().__init__(hidden_size, loops)
        self.project = nn.Linear(hidden_size, hidden_size)

    def initialise(self) -> None:
        nn.init.zeros_(self.project.weight)

    def constants(self, x_pre: Tensor, loop: int) -> tuple[Tensor, ...]:
        return (for_stream(self.project(within_float16(x_pre))),)  # (B, N, D)

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        return state + constants[0]


class NormInjection(AddInjection):
    """gain * norm(h) + W x_pre + b: as `add`, with a layer norm at the loop's boundary, so that the iterate cannot grow
    and its scale is forgotten. The gain (D,) is 1 at the start, W and b are 0."""

    def __init__(self, hidden_size: int, loops: int):
        super().__init__(hidden_size, loops)
        self.gain = nn.Parameter(torch.ones(hidden_size))

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        return for_stream(_norm(state)) * self.gain + constants[0]


class DecayInjection(Injection):
    """exp(-softplus(d) exp(A)) h + softplus(d) B norm(x_pre), with d and A (D,) per channel (after Parcae).

    The factor of h is between 0 and 1 for any d and A: what an update starts from is forgotten. It is 1/2 at the start
    (d = A = 0).
    """

    def __init__(self, hidden_size: int, loops: int):
        super().__init__(hidden_size, loops)
        self.step = nn.Parameter(torch.zeros(hidden_size))  # d
        self.rate = nn.Parameter(torch.zeros(hidden_size))  # A
        self.project = nn.Linear(hidden_size, hidden_size, bias=False)  # B

    def constants(self, x_pre: Tensor, loop: int) -> tuple[Tensor, ...]:
        step = F.softplus(self.step.float())
        kept = torch.exp(-step * self.rate.float().exp())
        entering = step * for_stream(self.project(_norm(x_pre)))  # (B, N, D)
        return kept.expand(len(x_pre), 1, -1), entering

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        kept, entering = constants
        return state * kept + entering


class LanesInjection(Injection):
    """Two-lane hyper-connections at the loop's boundary (arXiv:2604.21106). The state is two lanes l = (l_0, l_1), and

        u = alpha_i . l,   s = Blocks(u) - u,   l <- M_i l + beta_i (x) s

    with alpha_i (2,), M_i (2, 2) and beta_i (2,) of loop i. They start as e_(i mod 2), the identity and 1. The
    residual connection is in M, so s is what the blocks add. The solution is the sum of the lanes. Both start as x_pre;
    a solve from an older solution h starts at (x_pre, h - x_pre), whose sum is h.
    """

    every_update = False
    lanes = 2

    def __init__(self, hidden_size: int, loops: int):
        super().__init__(hidden_size, loops)
        self.loops = max(loops, 2)
        first, second = torch.eye(2)
        self.read = nn.Parameter(torch.stack([(first, second)[i % 2] for i in range(self.loops)]))  # alpha
        self.carry = nn.Parameter(torch.eye(2).repeat(self.loops, 1, 1))  # M
        self.write = nn.Parameter(torch.ones(self.loops, 2))  # beta

    def constants(self, x_pre: Tensor, loop: int) -> tuple[Tensor, ...]:
        weights = torch.cat([self.read[loop], self.carry[loop].flatten(), self.write[loop]]).to(x_pre.dtype)
        return (weights.expand(len(x_pre), 1, -1),)  # (B, 1, 8)

    def start(self, x_pre: Tensor, h: Tensor | None = None) -> Tensor:
        return torch.cat([x_pre, x_pre if h is None else h - x_pre], dim=-1)  # (B, N, 2D)

    def enter(self, state: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        first, second = state.chunk(2, dim=-1)
        weights = constants[0]
        return weights[..., 0:1] * first + weights[..., 1:2] * second

    def leave(self, state: Tensor, stream: Tensor, out: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        first, second = state.chunk(2, dim=-1)
        weights, added = constants[0], out - stream
        lanes = [weights[..., 2 + 2 * i : 3 + 2 * i] * first + weights[..., 3 + 2 * i : 4 + 2 * i] * second
                 + weights[..., 6 + i : 7 + i] * added for i in (0, 1)]  # fmt: skip
        return torch.cat(lanes, dim=-1)

    def solution(self, state: Tensor) -> Tensor:
        first, second = state.chunk(2, dim=-1)
        return first + second


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


INJECTIONS: dict[str, type[Injection]] = {
    "mlp": MixingInjection,
    "add": AddInjection,
    "norm": NormInjection,
    "decay": DecayInjection,
    "lanes": LanesInjection,
    "none": NoInjection,
}
