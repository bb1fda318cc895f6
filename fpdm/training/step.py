"""One step of training: random numbers, forward and backward passes over micro-batches, update."""

from contextlib import nullcontext
from typing import NamedTuple

from torch import Tensor

from fpdm.data.latents import LatentBatch
from fpdm.training.batches import draw_batch
from fpdm.training.meter import QUARTERS, loss_sums
from fpdm.training.optimizers import learning_rate
from fpdm.training.parts import Parts
from fpdm.training.sjfb import Work, plan_step, work_cost
from fpdm.training.step_loss import Batch


class Sums(NamedTuple):
    """Means over this rank's share of a batch. losses: the entries of `loss_sums`; minimised: what training minimises;
    residual: of the last update, 0 if not asked for."""

    losses: Tensor
    minimised: Tensor
    residual: Tensor | float


class Outcome(NamedTuple):
    """What one step did. rate: the learning rate; cost: block passes and FLOPs, per image; norm: of the gradients of
    all ranks, before clipping; finite: whether it is; both () on the device."""

    work: Work
    rate: float
    cost: tuple[float, float]
    sums: Sums
    norm: Tensor
    finite: Tensor


def take_step(parts: Parts, step: int, latents: LatentBatch, with_residual: bool) -> Outcome:
    """Training step `step`, from 0, on this rank's records of it. with_residual: also the residual, of an FPDM."""
    config, network = parts.config, parts.learner.network
    work = plan_step(config.sjfb, network, config.run.seed, step, config.optim.steps)
    batch = draw_batch(parts, latents, work, step)
    rate = learning_rate(config.optim, step)
    parts.learner.begin(rate)
    sums = accumulate(parts, batch, work, with_residual)
    norm, finite = parts.learner.update(step, parts.step_loss.unused(work))
    cost = work_cost(work, parts.cost_at(work.depth), config.sjfb, network.early_head)
    return Outcome(work, rate, cost, sums, norm, finite)


def accumulate(parts: Parts, batch: Batch, work: Work, with_residual: bool) -> Sums:
    """Forward and backward passes over a batch, a micro-batch at a time; their gradients add up."""
    accelerator, share = parts.accelerator, len(batch.y)
    losses, minimised, residual = 0.0, 0.0, 0.0
    for first in range(0, share, parts.micro):
        part = batch.rows(slice(first, first + parts.micro))
        last = first + parts.micro == share
        with nullcontext() if last else accelerator.no_sync(parts.learner.model):
            found = parts.step_loss(part, work, with_residual)
            loss = found.minimised.sum() / share
            accelerator.backward(loss)
        minimised += loss.detach()
        losses += loss_sums(found.losses, parts.process.part(part.draws.t, QUARTERS)) / share
        if found.residual is not None:
            residual += found.residual.sum() / share
    return Sums(losses, minimised, residual)
