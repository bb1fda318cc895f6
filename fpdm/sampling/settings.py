"""Sampling settings: those of the command line, and of `fpdm.sample`."""

from dataclasses import dataclass

from fpdm.config import check_choice, check_one_of, check_positive, check_range, limits
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.guidance import Guidance, InternalGuidance
from fpdm.sampling.protocols import PROTOCOLS
from fpdm.sampling.solvers import SOLVERS
from fpdm.sampling.solving import Solving

BESIDE_A_PROTOCOL = ("protocol", "classes", "seed", "attributes")


@dataclass
class SamplingConfig:
    """How images are sampled. Together with a checkpoint, these settings determine every image.

    Args:
        protocol: the settings of one of the paper's figures or tables; replaces all settings below except classes,
            attributes and seed. paper (280 block passes, 8 iterations, DDPM, no guidance), paper-cfg (560, guidance 4,
            as Fig. 1), or paper-SAMPLER-BUDGET for Tab. 1, for example paper-ddim-140.
        budget: block passes per image; as many timesteps as fit are used. Give budget or steps.
        steps: number of timesteps. Give budget or steps.
        iterations: updates per timestep, or their mean if allocation is not constant
            (FPDM only; 4 if not given).
        allocation: how updates are distributed over timesteps: {allocations}.
        ratio: the largest number of iterations divided by the smallest; if adaptive, by the mean.
        tolerance: residual at which adaptive allocation stops iterating.
        counts: the iterations of each model call, from noise to image, instead of all of the above (FPDM only).
        reuse: start each solve from the previous timestep's solution (FPDM only; if not given, as the model says, which
            is on for the paper's).
        reuse_weight: weight of that solution in the initial value, above 0 and at most 1; the rest is the initial value
            without reuse.
        extrapolation: start this far along the line through the last two solutions: 0 is the last one,
            1 is the new timestep.
        anderson: memory of Anderson acceleration of each solve, 1 to 5; 0 for plain iteration (FPDM only; needs at
            least 3 iterations).
        sampler: the solver: {solvers}.
        eta: randomness of ddim; 0 for none.
        shift: above 1, more of a flow's timesteps are near the noise; only for a process with continuous time.
        cfg_scale: scale of classifier-free guidance; 1 for none (0 would sample without labels).
        cfg_channels: number of latent channels, from the first, that are guided (null for all; published DiT guides 3).
        cfg_interval: lowest and highest guided timestep (null for all), in 0..1 of a flow; other timesteps cost half.
        guidance_rescale: how far the guided prediction is rescaled to the standard deviation of the conditional one,
            0 to 1.
        internal_guidance: scale of internal guidance, by the prediction of an early exit; 1 for none.
        internal_exit: number of block passes before that exit; if not given, that of the model's early head or, without
            one, after the first update (block of a DiT). Without an early head, it passes through the post blocks,
            which the budget counts.
        internal_interval: lowest and highest timestep that is guided internally (null for all), in 0..1 of a flow.
        classes: labels to sample in turn (null for uniformly random labels).
        seed: seed of noise and labels (or attributes). Those of an image do not depend on its batch.
        attributes: for a model that is conditioned on attributes, what to sample in turn, as in [{{Smiling: 1}},
            {{Smiling: -1}}]; what is not given is that of a random training image (null for all of it).
    """

    protocol: str | None = None
    budget: int | None = None
    steps: int | None = None
    iterations: int | None = None
    allocation: str = "constant"
    ratio: float = 3.0
    tolerance: float = 0.05
    counts: list[int] | None = None
    reuse: bool | None = None
    reuse_weight: float = 1.0
    extrapolation: float = 0.0
    anderson: int = 0
    sampler: str = "ddim"
    eta: float = 0.0
    shift: float = 1.0
    cfg_scale: float = 1.0
    cfg_channels: int | None = None
    cfg_interval: list[float] | None = None
    guidance_rescale: float = 0.0
    internal_guidance: float = 1.0
    internal_exit: int | None = None
    internal_interval: list[float] | None = None
    classes: list[int] | None = None
    seed: int = 0
    attributes: list[dict[str, float]] | None = None

    def __post_init__(self):
        self._check_ranges()
        if self.protocol is not None:
            return self._check_protocol()
        self.guidance.check()
        self.solving.check()
        check_choice("sampler", self.sampler, SOLVERS)
        check_choice("allocation", self.allocation, ALLOCATIONS)
        if self.counts is not None:
            self._check_counts()
        else:
            check_one_of(budget=self.budget, steps=self.steps)
        if self.eta and not SOLVERS[self.sampler].eta:
            only = ", ".join(name for name, solver in SOLVERS.items() if solver.eta)
            raise ValueError(f"eta={self.eta} with sampler={self.sampler}: only {only} uses eta; leave it out")
        self._check_allocation()

    def _check_ranges(self) -> None:
        check_range(1, limits.PASSES, budget=self.budget)
        check_range(1, limits.TIMESTEPS, steps=self.steps)
        check_range(1, limits.ITERATIONS, iterations=self.iterations, ratio=self.ratio)
        check_range(0, limits.ITERATIONS, counts=self.counts)
        check_range(-limits.CLASSES, limits.CLASSES, classes=self.classes)  # checked against the model's later
        check_range(0, limits.SEED, seed=self.seed)
        check_positive(limits.FACTOR, tolerance=self.tolerance, shift=self.shift)
        check_range(0, 1, eta=self.eta)
        for name, value in ((name, value) for values in self.attributes or () for name, value in values.items()):
            check_range(-limits.FACTOR, limits.FACTOR, **{f"attributes.{name}": value})

    @property
    def guidance(self) -> Guidance:
        """The settings of classifier-free guidance."""
        internal = InternalGuidance(self.internal_guidance, self.internal_exit, self.internal_interval)
        return Guidance(self.cfg_scale, self.cfg_channels, self.cfg_interval, self.guidance_rescale, internal=internal)

    @property
    def solving(self) -> Solving:
        """The settings of the solves."""
        return Solving(self.reuse, self.reuse_weight, self.extrapolation, self.anderson)

    def resolved(self, iterative: bool) -> "SamplingConfig":
        """The settings that a protocol stands for, for a model with (FPDM) or without (DiT) iterations."""
        if self.protocol is None:
            return self
        protocol = PROTOCOLS[self.protocol]
        iterations = {"iterations": protocol.iterations} if iterative else {}
        kept = {name: getattr(self, name) for name in BESIDE_A_PROTOCOL if name != "protocol"}
        return SamplingConfig(**protocol.settings, **iterations, **kept)

    def _check_protocol(self) -> None:
        check_choice("protocol", self.protocol, tuple(PROTOCOLS))
        fields = SamplingConfig.__dataclass_fields__
        given = [n for n in fields if n not in BESIDE_A_PROTOCOL and getattr(self, n) != fields[n].default]
        if given:
            raise ValueError(
                f"protocol={self.protocol} already sets {', '.join(given)}; leave that out, or do not use a protocol"
            )

    def _check_allocation(self) -> None:
        allocation = ALLOCATIONS[self.allocation]
        if not allocation.ratio and self.ratio != SamplingConfig.ratio:
            raise ValueError(
                f"ratio={self.ratio} with allocation={self.allocation}: choose another allocation, or leave it out"
            )
        if allocation.at_run_time is None and self.tolerance != SamplingConfig.tolerance:
            users = ", ".join(name for name, entry in ALLOCATIONS.items() if entry.at_run_time is not None)
            raise ValueError(
                f"tolerance={self.tolerance} with allocation={self.allocation}: only {users} uses it; leave it out"
            )
        if allocation.ratio and allocation.at_run_time is None and self.iterations == 1:
            raise ValueError(f"allocation={self.allocation} with iterations=1: nothing to move; give at least 2")
        most = max(self.counts) if self.counts else self.iterations
        if self.anderson and self.allocation == "constant" and most is not None and most < 3:
            raise ValueError(
                f"anderson={self.anderson} with iterations={most}: acceleration has no effect before the third update; "
                "give at least 3 iterations"
            )

    def _check_counts(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts={self.counts}: at least one timestep, and at least 1 iteration at each")
        others = {"budget": self.budget, "steps": self.steps, "iterations": self.iterations}
        given = [name for name, value in others.items() if value is not None]
        if given or self.allocation != "constant":
            raise ValueError(
                f"counts={self.counts}: already sets the plan; leave out {', '.join(given) or 'allocation'}"
            )


def _listed(choices: dict) -> str:
    """`name (about)`, separated by commas."""
    return ", ".join(f"{name} ({choice.about})" for name, choice in choices.items())


if SamplingConfig.__doc__:  # python -OO has none
    SamplingConfig.__doc__ = SamplingConfig.__doc__.format(allocations=_listed(ALLOCATIONS), solvers=_listed(SOLVERS))
