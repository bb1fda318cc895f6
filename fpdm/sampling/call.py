"""One model call at a timestep: guidance, the initial value of the solve, and the prediction as clean latent and noise.

Our sampler and the diffusers pipeline both use it.

B batch, C latent channels, H and W height and width of the latent, N tokens, D width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpdm.conditionings import NULL_ATTRIBUTE
from fpdm.cost import ForwardCost
from fpdm.data.attributes import Attributes
from fpdm.data.codec import Codec
from fpdm.processes import Level, Process
from fpdm.sampling.allocation import RunTimeAllocation
from fpdm.sampling.guidance import Guidance, guide, guide_internally
from fpdm.sampling.solving import Solving, Starts


class Source(NamedTuple):
    """A trained model and everything else that sampling needs.

    denoise: called as `denoise(x, t, y)`, or `denoise(x, t, y, iterations=k, init=start, ...)` if the model has an
        implicit layer. It returns an object with `.prediction` and `.solution`, as a model does.
    cost: of one call. latent_shape: (C, H, W). guidable: whether the null condition was trained.
    codec: decodes the latents; None if no images are needed. origin: facts about the source for the samples' recipe.
    reuse: whether solves start from earlier solutions unless told otherwise. reusable: whether they can.
    early_head: number of the exit that has a head of its own; 0 for none.
    attributes: some of the training data, from which sampling draws, if the model is conditioned on them; None if it is
        conditioned on labels 0..num_classes-1.
    """

    denoise: Callable[..., Any]
    process: Process
    cost: ForwardCost
    latent_shape: tuple[int, int, int]
    num_classes: int = 1
    guidable: bool = False
    codec: Codec | None = None
    device: torch.device = torch.device("cpu")
    origin: dict[str, Any] | None = None
    reuse: bool = True
    reusable: bool = True
    early_head: int = 0
    attributes: Attributes | None = None

    @property
    def null(self) -> float:
        """The value of a null condition."""
        return self.num_classes if self.attributes is None else NULL_ATTRIBUTE

    @property
    def iterative(self) -> bool:
        """Whether its model has an implicit layer."""
        return self.cost.iterative

    def reuses(self, asked: bool | None) -> bool:
        """Whether solves start from earlier solutions. asked: the setting; None for the model's default."""
        return self.iterative and (self.reuse if asked is None else asked)

    def cost_with(self, guidance: Guidance) -> ForwardCost:
        """The cost of a call under this guidance, without the doubled batch of the classifier-free one. Internal
        guidance counts at every timestep, also where its interval leaves some out."""
        internal = guidance.internal
        if internal.scale == 1:
            return self.cost
        return self.cost.with_exit(own_head=internal.number(self.early_head, self.cost) == self.early_head)

    def check(self, guidance: Guidance, solving: Solving) -> None:
        """ValueError for settings that are invalid, or that this source does not support."""
        for settings in (guidance, solving):
            settings.check()
        guidance.check_model(self.guidable, self.latent_shape[0], None if self.iterative else self.cost.explicit_blocks)
        solving.check_model(self.iterative, self.reuse, self.reusable)


class Call(NamedTuple):
    """The result of a call for x (B, C, H, W), after guidance. All tensors are (B, C, H, W), except those in output.

    updates: of each row, (B,) or (2B,), under a run-time allocation; None if the plan gives their number.
    output: the model's output for all rows. mean: the prediction in the model's parametrisation. variance: None if not
    learned. x0, eps: clean latent and noise; x0 is clipped if the codec has a range.
    """

    output: Any
    mean: Tensor
    variance: Tensor | None
    x0: Tensor
    eps: Tensor
    updates: Tensor | None = None


class ModelCalls:
    """The model calls of one run, in order. It keeps the solutions that later calls start from.

    y: conditions, labels (B,) or attributes (B, A). with_residuals: request the residual of each update. allocation: a
    run-time allocation, if any.
    """

    def __init__(
        self,
        source: Source,
        y: Tensor,
        guidance: Guidance,
        solving: Solving,
        allocation: RunTimeAllocation | None = None,
        with_residuals: bool = False,
    ):
        source.check(guidance, solving)
        self.source, self.guidance, self.anderson = source, guidance, solving.anderson
        self.allocation, self.with_residuals = allocation, with_residuals
        self._conditions = y
        self._both = torch.cat([y, torch.full_like(y, source.null)]) if source.guidable else None
        reuses = source.reuses(solving.reuse)
        self._starts = Starts(solving.reuse_weight, solving.extrapolation) if reuses else None
        self._made = 0

    def __call__(self, x: Tensor, t: float, level: Level, iterations: int | None) -> Call:
        """One call for x (B, C, H, W) at timestep t.

        level: that of t. iterations: from the plan; None for an explicit model.
        """
        doubled = self.guidance.at(t)
        inputs, y = (torch.cat([x, x]), self._both) if doubled else (x, self._conditions)
        rows = len(inputs)
        times = torch.full((rows,), t, device=x.device)
        arguments, internal = self._solve(level, iterations, rows), self.guidance.internal
        if internal.at(t):
            arguments["exits"] = (internal.number(self.source.early_head, self.source.cost),)
        process = self.source.process
        output, updates = self.source.denoise(inputs, process.network_time(times), y, **arguments), None
        if self.allocation is not None:
            stopped = getattr(output, "counts", None)  # by the model, before it made all that were requested
            updates = torch.as_tensor(arguments["iterations"]).expand(rows) if stopped is None else stopped
            self.allocation.observe(updates)
        if self._starts is not None:
            self._starts.add(level.place, output.solution)
        self._made += 1
        prediction = output.prediction.float()
        if internal.at(t):
            prediction = guide_internally(prediction, output.early[0].float(), x.shape[1], internal.scale)
        if doubled:
            prediction = guide(prediction, x.shape[1], self.guidance)
        mean, variance = process.split(prediction)
        x0, eps = process.x0_and_eps(mean, x, level)
        if (clip := self.source.codec and self.source.codec.clip) is not None:
            x0 = x0.clamp(-clip, clip)
            if level.noise > 0:  # otherwise x is the image, and eps has no part in it
                eps = (x - level.signal * x0) / level.noise
        return Call(output, mean, variance, x0, eps, updates)

    def _solve(self, level: Level, iterations: int | None, rows: int) -> dict[str, Any]:
        """The model's arguments for its implicit layer; none for an explicit model."""
        if not self.source.iterative:
            return {}
        start = None if self._starts is None else self._starts.at(level.place, rows)
        arguments = {"iterations": iterations, "init": start}
        if self.anderson:
            arguments["anderson"] = self.anderson
        if self.allocation is not None:
            arguments |= self.allocation.request(self._made, rows)
        elif self.with_residuals:
            arguments["with_residuals"] = True
        return arguments
