"""The loss of one micro-batch: what the network predicts from the last iterate, and all that is trained beside it.

B samples of the micro-batch, C latent channels, h and w height and width, N tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fpdm.config import ExperimentConfig
from fpdm.models import Denoiser
from fpdm.models.adjoint import Adjoint, Totals
from fpdm.models.gradients import Gradient
from fpdm.processes import Losses, Process
from fpdm.training.draws import Draws, draw_normal, draw_uniform
from fpdm.training.objective import Objective
from fpdm.training.sjfb import Exit, Work


class Batch(NamedTuple):
    """x0 (B, C, h, w) clean latents, y their conditions, and the random numbers of the step."""

    x0: Tensor
    y: Tensor
    draws: Draws

    def rows(self, part: slice) -> "Batch":
        """Some of the samples."""
        return Batch(self.x0[part], self.y[part], self.draws.rows(part))


class Found(NamedTuple):
    """minimised: (B,) what training minimises. losses: of the last iterate's prediction. residual: (B,) of the last
    update, on request."""

    minimised: Tensor
    losses: Losses
    residual: Tensor | None


class StepLoss:
    """Computes the loss of micro-batches as a config asks.

    model: the network, or what wraps it for several processes. adjoint: solves the adjoint equation, for
    sjfb.variant=implicit; it counts what that took. minimises_more: whether training minimises something else than the
    loss of the last iterate's prediction.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: nn.Module,
        network: Denoiser,
        process: Process,
        objective: Objective,
    ):
        sjfb = config.sjfb
        self.config, self.recompute = sjfb, config.run.gradient_checkpointing
        self.model, self.network, self.process, self.objective = model, network, process, objective
        self.adjoint = None
        if sjfb.variant == "implicit" and network.iterative:
            self.adjoint = Adjoint(sjfb.adjoint, sjfb.adjoint_tolerance, sjfb.adjoint_iterations)
        of_solves = network.iterative and (sjfb.consistency or sjfb.jacobian)
        self.minimises_more = any((sjfb.supervise != "last", of_solves, network.early_head, objective.weighting))

    def unused(self, work: Work) -> list[nn.Parameter]:
        """Parameters of a DiT's blocks that are not in use yet, and of an early head after one of them."""
        if work.depth is None:
            return []
        parts = [*self.network.stacks()[0][work.depth :]]
        if self.network.early_head > work.depth:
            parts.append(self.network.early_layer)
        return [parameter for part in parts for parameter in part.parameters()]

    def adjoint_facts(self, accelerator: Accelerator) -> dict[str, float]:
        """What the adjoint solves of all processes took since the last call: values for the log."""
        products, solves, failures = _summed(self.adjoint.take(), accelerator)
        return {"adjoint_products": products / max(solves, 1), "adjoint_failures": failures}

    def state(self, accelerator: Accelerator) -> list[int] | None:
        """What a resumed run needs to log the same of its adjoint solves as an uninterrupted one; None without such
        solves. Called on every rank."""
        return None if self.adjoint is None else list(_summed(self.adjoint.totals, accelerator))

    def load(self, state: list[int] | None, accelerator: Accelerator) -> None:
        """Continue from a `state`, which is of all ranks together."""
        if self.adjoint is not None and state is not None and accelerator.is_main_process:
            self.adjoint.totals = Totals(*state)

    def __call__(self, batch: Batch, work: Work, with_residual: bool = False) -> Found:
        """with_residual: also the residual of the last update, of an FPDM."""
        draws = batch.draws
        t = draws.t
        x_t = self.process.add_noise(batch.x0, draws.noise, t)
        forward = {"exits": tuple(one.number for one in work.exits)} if work.exits else {}
        if work.depth is not None:
            forward["depth"] = work.depth
        if self.network.iterative:
            forward |= self._solve(batch, work, x_t) | {"with_residuals": with_residual}
        cleaner = self._solution_at_cleaner(batch, work) if work.consistency else None
        seen = self.process.network_time(t)
        output = self.model(x_t, seen, batch.y, drop_labels=draws.drop_labels, recompute=self.recompute, **forward)

        losses = self._losses(output.prediction, batch)
        minimised = self.objective(losses, t)
        for one, early in zip(work.exits, output.early, strict=True):
            minimised = minimised + one.weight * self._early(one, early, output.prediction, batch)
        if cleaner is not None:
            away = (output.solution.float() - cleaner.float()).square().flatten(1).mean(1)
            minimised = minimised + work.consistency * away
        if output.jacobian is not None:
            minimised = minimised + self.config.jacobian * output.jacobian
        if unused := self.unused(work):  # DDP waits for a gradient of every parameter
            minimised = minimised + 0 * sum(parameter.sum() for parameter in unused)
        return Found(minimised, losses, None if output.residuals is None else output.residuals[:, -1])

    def _solve(self, batch: Batch, work: Work, x_t: Tensor) -> dict:
        """The model's arguments for its implicit layer."""
        gradient = {"adjoint": self.adjoint} if self.adjoint is not None else {}
        if self.config.variant == "phantom":
            gradient["damping"] = self.config.damping
        if self.config.jacobian:
            gradient["jacobian"] = batch.draws.jacobian
        found = {"iterations": work.m, "iterations_no_grad": work.n}
        if gradient:
            found["gradient"] = Gradient(**gradient)
        if work.start == "noise":
            found["init"] = noise_like(batch.draws.start)
        if work.start == "other" and work.n:
            # The updates without gradient are made for the neighbour; those with gradient must leave its solution.
            solution = self._solution(x_t, batch.draws.t, batch, work.n)
            found |= {"init": swap_neighbours(solution), "iterations_no_grad": 0}
        return found

    @torch.no_grad()
    def _solution(self, x_t: Tensor, t: Tensor, batch: Batch, iterations: int) -> Tensor:
        """(B, N, D) after so many updates, without gradient."""
        seen = self.process.network_time(t)
        return self.model(x_t, seen, batch.y, drop_labels=batch.draws.drop_labels, iterations=iterations).solution

    def _solution_at_cleaner(self, batch: Batch, work: Work) -> Tensor:
        """Solution (B, N, D) for the same images and noise at cleaner timesteps."""
        low, high = self.config.consistency_gap
        t = self.process.cleaner(batch.draws.t, low + (high - low) * batch.draws.gap)
        return self._solution(self.process.add_noise(batch.x0, batch.draws.noise, t), t, batch, work.n + work.m)

    def _losses(self, prediction: Tensor, batch: Batch) -> Losses:
        return self.process.losses(prediction, batch.x0, batch.draws.noise, batch.draws.t)

    def _early(self, one: Exit, early: Tensor, last: Tensor, batch: Batch) -> Tensor:
        """(B,) loss of an earlier iterate's prediction."""
        t = batch.draws.t
        if not one.distilled:
            return self.objective(self._losses(early, batch), t)
        distance = self.process.distance(early, last.detach(), t)
        towards_last = self.objective(Losses(distance, distance, torch.zeros_like(distance)), t)
        if one.distilled == 1:
            return towards_last
        return one.distilled * towards_last + (1 - one.distilled) * self.objective(self._losses(early, batch), t)


def draw_beside(
    work: Work, config: ExperimentConfig, network: Denoiser, step: int, rows: slice, device: torch.device
) -> dict[str, Tensor]:
    """The further random numbers that a step's work needs, as entries of `Draws`."""
    seed, batch_size, (tokens, width) = config.run.seed, config.optim.batch_size, network.token_shape
    of = {"seed": seed, "step": step, "rows": rows, "device": device}
    found = {}
    if work.start == "noise":
        found["start"] = draw_normal("start-noise", shape=(tokens, width), **of)
    if work.consistency:
        found["gap"] = draw_uniform("gap", batch_size=batch_size, **of)
    if network.iterative and config.sjfb.jacobian:
        wide = width * network.implicit.injection.lanes
        found["jacobian"] = draw_normal("jacobian", shape=(tokens, wide), **of)
    return found


def _summed(totals: Totals, accelerator: Accelerator) -> Totals:
    """Over all ranks."""
    return Totals(*accelerator.reduce(torch.tensor(totals, device=accelerator.device), "sum").tolist())


@contextmanager
def without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Hide the gradients of these parameters, so that the optimizer leaves them and their state as they are."""
    hidden = [(parameter, parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in hidden:
            parameter.grad = gradient


def noise_like(noise: Tensor) -> Callable[[Tensor], Tensor]:
    """From the default start to noise (B, N, D) of the same root mean square per sample, as a start of a solve."""

    def start(x_pre: Tensor) -> Tensor:
        size = x_pre.detach().float().square().mean(dim=(1, 2), keepdim=True).sqrt()
        return (noise * size).to(x_pre.dtype)

    return start


def swap_neighbours(solution: Tensor) -> Tensor:
    """Solutions (B, N, D) with samples 0 and 1, 2 and 3, ... swapped. B is even, so this is the same however the global
    batch is split into even parts."""
    return solution.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
