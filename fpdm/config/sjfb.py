"""How the iterates of a network are trained: an FPDM's updates, and where it is the same idea, a DiT's blocks."""

from dataclasses import dataclass, field
from itertools import pairwise

from fpdm.config import limits
from fpdm.config.checks import check_choice, check_positive, check_range

SJFB_VARIANTS = ("stochastic", "multi-step", "jfb", "phantom", "implicit")
SUPERVISIONS = ("last", "random", "all", "distil")
STARTS = ("input", "noise", "other")
ADJOINT_SOLVERS = ("fixed-point", "anderson", "broyden")


@dataclass
class SJFBConfig:
    """How the implicit layer is trained (Sec. 3.4). For a DiT, only grow, supervise, supervise_weight and
    early_head_weight have a meaning, in which a block takes the place of an update; it ignores the others.

    Args:
        variant: stochastic draws n in 0..no_grad and m in 1..grad; multi-step takes n = no_grad, m = grad; jfb takes
            n = no_grad, m = 1. In all three the gradient is that of the last m updates. phantom takes n = no_grad and
            m = grad, and damps the updates with gradient. implicit takes n = no_grad, and solves the adjoint equation
            at the next update instead of going back through several.
        no_grad: the paper's N, updates without gradient, at most 1,000.
        grad: the paper's M, updates with gradient, at most 1,000.
        grow: most updates of a step (blocks of a DiT) from a share of training on, as in [[0, 1], [0.4, 2], [0.65, 4]];
            null for no limit. Early steps are then cheap.
        supervise: which iterates are trained to be good: last; random (one earlier iterate with gradient beside the
            last); all (all with gradient); or distil (as random, but the earlier one is trained towards a mixture of
            the target and the last one's prediction, whose share rises from 0 to 1 over training). Earlier iterates
            are decoded by the shared post blocks and final layer.
        supervise_weight: weight of each earlier iterate's loss beside the last one's (1/2 if not given, 1/3 for all).
        early_head_weight: weight of the early head's loss, if the model has one (model.early_head).
        start: where a step's solves start, one of these at random: input (the pre blocks' output), noise, or other (the
            solution of the neighbour in the batch after the updates without gradient, at its own noise level). input is
            the paper's.
        consistency: weight of |h_t - h_s|^2 / size at the end of training: the distance of the solution to that of the
            same image and noise at a cleaner timestep s, which gets no gradient. 0 for none.
        consistency_from: share of training from which this weight rises, from 0.
        consistency_gap: lowest and highest t - s, as shares of all timesteps.
        jacobian: weight of |v^T J|^2 / size, with the Jacobian J of the update at the last iterate, and normal v; it
            keeps many updates stable. 0 for none.
        damping: tau of phantom, h <- (1 - tau) h + tau g(h).
        adjoint: how implicit solves its equation: {solvers}.
        adjoint_tolerance: relative residual at which that solve ends.
        adjoint_iterations: most products with the Jacobian in that solve.
    """

    variant: str = "stochastic"
    no_grad: int = 12
    grad: int = 12
    grow: list[list[float]] | None = None
    supervise: str = "last"
    supervise_weight: float | None = None
    early_head_weight: float = 0.5
    start: list[str] = field(default_factory=lambda: ["input"])
    consistency: float = 0.0
    consistency_from: float = 0.97
    consistency_gap: list[float] = field(default_factory=lambda: [0.05, 0.3])
    jacobian: float = 0.0
    damping: float = 0.5
    adjoint: str = "anderson"
    adjoint_tolerance: float = 1e-3
    adjoint_iterations: int = 30

    def __post_init__(self):
        check_choice("sjfb.variant", self.variant, SJFB_VARIANTS)
        check_choice("sjfb.supervise", self.supervise, SUPERVISIONS)
        check_choice("sjfb.adjoint", self.adjoint, ADJOINT_SOLVERS)
        check_range(0, limits.TRAINING_UPDATES, **{"sjfb.no_grad": self.no_grad})
        if self.grad < 1:
            raise ValueError(f"sjfb.grad={self.grad}: at least 1, because one update must carry the gradient")
        check_range(1, limits.TRAINING_UPDATES, **{"sjfb.grad": self.grad})
        check_range(1, limits.TRAINING_UPDATES, **{"sjfb.adjoint_iterations": self.adjoint_iterations})
        for name in ("supervise_weight", "early_head_weight", "consistency", "jacobian"):
            check_range(0, limits.FACTOR, **{f"sjfb.{name}": getattr(self, name)})
        for name in ("consistency_from", "consistency_gap"):
            check_range(0, 1, **{f"sjfb.{name}": getattr(self, name)})
        check_positive(1, **{"sjfb.adjoint_tolerance": self.adjoint_tolerance})
        if not 0 < self.damping <= 1:
            raise ValueError(f"sjfb.damping={self.damping}: above 0, at most 1")
        if len(self.consistency_gap) != 2 or self.consistency_gap[0] > self.consistency_gap[1]:
            raise ValueError(f"sjfb.consistency_gap={self.consistency_gap}: the lowest and the highest, as in 0.05,0.3")
        if not self.start:
            raise ValueError("sjfb.start=[]: name at least one start, as in input")
        for start in self.start:
            check_choice("sjfb.start", start, STARTS)
        if "other" in self.start and self.no_grad == 0:
            raise ValueError(
                "sjfb.start=other with sjfb.no_grad=0: the neighbour's solution comes from updates without gradient; "
                "set sjfb.no_grad to at least 1, or leave other out"
            )
        if self.consistency and self.consistency_from == 1:
            raise ValueError(
                f"sjfb.consistency_from=1 with sjfb.consistency={self.consistency}: its weight would always be 0; "
                "give a share below 1"
            )
        if self.supervise == "last" and self.supervise_weight is not None:
            raise ValueError(
                f"sjfb.supervise_weight={self.supervise_weight} with sjfb.supervise=last: no earlier iterate is "
                "trained; choose random, all or distil, or leave the weight out"
            )
        self._check_use()
        self._check_grow()

    def _check_use(self) -> None:
        """Settings that change nothing, because of what another one says."""
        used = {
            "damping": ("variant", "phantom"), "adjoint": ("variant", "implicit"),
            "adjoint_tolerance": ("variant", "implicit"), "adjoint_iterations": ("variant", "implicit"),
        }  # fmt: skip
        for name, (by, value) in used.items():
            if getattr(self, name) != getattr(SJFBConfig, name) and getattr(self, by) != value:
                raise ValueError(
                    f"sjfb.{name}={getattr(self, name)} with sjfb.{by}={getattr(self, by)}: only {value} uses it; "
                    f"leave it out, or set sjfb.{by} to {value}"
                )
        if not self.consistency and (self.consistency_from, self.consistency_gap) != (0.97, [0.05, 0.3]):
            name = "consistency_from" if self.consistency_from != 0.97 else "consistency_gap"
            raise ValueError(
                f"sjfb.{name}={getattr(self, name)} with sjfb.consistency=0: nothing uses it; leave it out, or give "
                "sjfb.consistency a weight"
            )

    def _check_grow(self) -> None:
        if self.grow is None:
            return
        example = "pairs of a share of training and the most updates from there on, as in [[0, 1], [0.4, 2], [0.65, 4]]"
        numbers = [number for pair in self.grow for number in (pair if isinstance(pair, list) else [pair])]
        check_range(0, limits.TRAINING_UPDATES, **{"sjfb.grow": numbers})
        if not self.grow or any(not isinstance(pair, list) or len(pair) != 2 for pair in self.grow):
            raise ValueError(f"sjfb.grow={self.grow}: {example}")
        shares, most = zip(*self.grow, strict=True)
        rising = all(a < b for a, b in pairwise(shares))
        if shares[0] != 0 or shares[-1] >= 1 or not rising or any(count < 1 or count % 1 for count in most):
            raise ValueError(f"sjfb.grow={self.grow}: {example}; shares rise from 0 and stay below 1, counts are whole")
        if list(most) != sorted(most):
            raise ValueError(f"sjfb.grow={self.grow}: {example}; the numbers of updates must not fall")
        check_range(1, limits.TRAINING_UPDATES, **{"sjfb.grow": list(most)})


if SJFBConfig.__doc__:  # python -OO has none
    SJFBConfig.__doc__ = SJFBConfig.__doc__.format(solvers=", ".join(ADJOINT_SOLVERS))
