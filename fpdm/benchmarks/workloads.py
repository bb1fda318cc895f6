"""Training steps and sampling runs with random data, to be timed.

All weights are random, because blocks would have no effect with the zeros of a new network.
"""

from collections.abc import Callable, Iterable
from itertools import chain, cycle

import torch
from torch import Tensor, nn

from fpdm.benchmarks.timing import Bench
from fpdm.loading import make_source
from fpdm.models import Denoiser, block_cost, build_model
from fpdm.processes import Diffusion
from fpdm.sampling.call import ModelCalls
from fpdm.sampling.guidance import Guidance
from fpdm.sampling.plan import Plan
from fpdm.sampling.sampler import run_plan
from fpdm.sampling.solvers import make_solver
from fpdm.sampling.solving import Solving
from fpdm.training.draws import draw_step
from fpdm.training.ema import EMA

Shape = tuple[int, int, int]


def network(bench: Bench, name: str, latent: Shape, **overrides) -> Denoiser:
    """A network by name for latents (C, h, h), on the bench's device."""
    torch.manual_seed(0)
    with bench.device:
        model = build_model(name, in_channels=latent[0], input_size=latent[1], **overrides)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    return model


def training_step(
    bench: Bench, model: nn.Module, latent: Shape, batch: int, iterations: Iterable[tuple[int, int]] = ()
) -> Callable[[], None]:
    """One step on the device: random draws, forward, loss, backward, clipping, AdamW, EMA. Data is on the device.

    iterations: (n, m) of an FPDM's steps, used in turn.
    """
    diffusion, ema = Diffusion(), EMA(model, 0.9999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    x0 = torch.randn(batch, *latent, device=bench.device)
    y = torch.arange(batch, device=bench.device) % model.num_classes
    turns = cycle(list(iterations) or [(0, 0)])
    model.train()

    def step() -> None:
        draws = draw_step(0, 0, batch, slice(0, batch), latent, diffusion, 0.1, bench.device)
        n, m = next(turns)
        forward = {"iterations": m, "iterations_no_grad": n} if m else {}
        optimizer.zero_grad()
        with bench.autocast():
            output = model(diffusion.add_noise(x0, draws.noise, draws.t), draws.t, y, drop_labels=draws.drop_labels,
                           **forward)  # fmt: skip
        diffusion.losses(output.prediction, x0, draws.noise, draws.t).total.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, 1)

    return step


def sampling_run(bench: Bench, model: Denoiser, latent: Shape, batch: int, plan: Plan) -> Callable[[], Tensor]:
    """Sampling the latents of one batch: DDIM with reuse, without decoding."""
    noise = torch.randn(batch, *latent, device=bench.device)
    labels = torch.arange(batch, device=bench.device) % model.num_classes
    source = make_source(model.eval(), Diffusion(), None, bench.precision, block_cost(model))

    def run() -> Tensor:
        calls = ModelCalls(source, labels, Guidance(), Solving())
        advance = make_solver("ddim", source.process, plan.timesteps)
        with torch.inference_mode():
            return run_plan(calls, plan, noise, advance)

    return run


def blocks_alone(bench: Bench, model: Denoiser, batch: int, plan: Plan) -> Callable[[], Tensor]:
    """Only the block passes of a sampling run: no embedding, no head, no schedule."""
    tokens = torch.randn(batch, *model.token_shape, device=bench.device)
    c = torch.randn(batch, tokens.shape[-1], device=bench.device)
    before, *after = model.stacks()

    def run() -> Tensor:
        with torch.inference_mode():
            for step in plan.steps:
                h = tokens
                with bench.autocast():  # once per timestep, because weights are cast once per call
                    for block in before:
                        h = block(h, block.modulation(c))
                    if model.iterative:
                        constants = model.implicit.constants(h, c)
                        state = model.implicit.injection.start(h)
                        for loop in range(step.iterations):
                            state = model.implicit(state, constants.at(loop))
                        h = model.implicit.injection.solution(state)
                    for block in chain(*after):
                        h = block(h, block.modulation(c))
        return h

    return run
