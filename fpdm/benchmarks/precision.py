"""Effects of 16 bits on a trained network, with a float32 or a 16-bit residual stream: the residuals that solves reach,
the deviations of predictions and gradients from float32, and the memory of a training step.

The blocks add to the residual stream: a DiT's tokens, an FPDM's iterate. Under autocast, linear maps return 16 bits and
the stream stays float32 (docs/architecture.md). Here a 16-bit stream is also built, for comparison only.
"""

from contextlib import nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fpdm.data.batches import image_batches, to_signed
from fpdm.data.images import open_images
from fpdm.evaluation.tables import markdown_table
from fpdm.models import DiT, FixedPointDiT, build_model
from fpdm.models.blocks import DiTBlock
from fpdm.precision import PRECISIONS, under_autocast
from fpdm.sampling.call import Source
from fpdm.training.step_memory import norms_in_float32, step_memory

FLOAT32 = ("float32", "no", False)
DIGIT_CLASSES = 10
LEVELS = (999, 800, 600, 400, 200, 50)  # timesteps


class Batch(NamedTuple):
    """Noisy latents x (B, C, h, h) at timesteps t (B,), labels y (B,), clean latents x0 and noise (B, C, h, h)."""

    x: Tensor
    t: Tensor
    y: Tensor
    x0: Tensor
    noise: Tensor


def forms(precisions: tuple[str, ...]) -> list[tuple[str, str, bool]]:
    """(label, precision, whether the stream is 16-bit) of each form to compare; float32 first."""
    return [FLOAT32] + [
        (f"{p}, {'16-bit' if half else 'float32'} stream", p, half) for p in precisions for half in (False, True)
    ]


class SixteenBitStream:
    """Overrides a network's `embed`: under autocast, tokens start in 16 bits."""

    def embed(self, x: Tensor) -> Tensor:
        tokens = super().embed(x)
        return tokens.to(torch.get_autocast_dtype(x.device.type)) if under_autocast(x) else tokens


class SixteenBitBlock(DiTBlock):
    """Shifts, scales and gates in autocast's 16 bits, so that the values added to the stream are 16-bit too."""

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        dtype = torch.get_autocast_dtype(c.device.type) if under_autocast(c) else c.dtype
        return tuple(part.to(dtype) for part in super().modulation(c))


class SixteenBitDiT(SixteenBitStream, DiT):
    pass


class SixteenBitFixedPointDiT(SixteenBitStream, FixedPointDiT):
    pass


def in_form(model: DiT | FixedPointDiT, half_stream: bool) -> DiT | FixedPointDiT:
    """A copy with layer norms in float32, as in autocast on a GPU. With half_stream, tokens start in 16 bits under
    autocast, and the blocks keep the type of their input."""
    copy = norms_in_float32(deepcopy(model))
    if half_stream:
        copy.__class__ = SixteenBitFixedPointDiT if model.iterative else SixteenBitDiT
        for block in (module for module in copy.modules() if isinstance(module, DiTBlock)):
            block.__class__ = SixteenBitBlock
    return copy


def noisy_digits(source: Source, each: int) -> Batch:
    """The first `each` digits, each with noise at all timesteps in LEVELS.

    ValueError for a source that was not trained on digits.
    """
    if source.num_classes != DIGIT_CLASSES:
        raise ValueError(
            f"ckpt: a network of {source.num_classes} class(es); give one that was trained on the digits, which have "
            f"{DIGIT_CLASSES}"
        )
    pixels = [length * source.codec.downsampling for length in source.latent_shape[1:]]
    images = next(iter(image_batches(open_images("digits"), pixels, each)))
    with torch.no_grad():
        latents = source.codec.encode(to_signed(images.pixels).to(source.device)).mean
    x0, y = latents.repeat(len(LEVELS), 1, 1, 1), images.labels.to(source.device).repeat(len(LEVELS))
    t = torch.tensor(LEVELS, device=source.device).repeat_interleave(each)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(source.device)
    return Batch(source.process.add_noise(x0, noise, t), t, y, x0, noise)


def run(model: nn.Module, precision: str, batch: Batch, **settings):
    """One forward pass of the batch under autocast to a precision (no, bf16, fp16)."""
    dtype = PRECISIONS[precision]
    with nullcontext() if dtype is None else torch.autocast(batch.x.device.type, dtype):
        return model(batch.x, batch.t, batch.y, drop_labels=torch.zeros_like(batch.y, dtype=torch.bool), **settings)


@torch.no_grad()
def residuals(model: FixedPointDiT, precision: str, batch: Batch, iterations: tuple[int, ...]) -> list[float]:
    """Median relative residual of the k-th update, for each k in `iterations`."""
    output = run(model, precision, batch, iterations=max(iterations), with_residuals=True)
    return [float(output.residuals[:, k - 1].median()) for k in iterations]


@torch.no_grad()
def deviations(
    model: nn.Module, exact: nn.Module, precision: str, batch: Batch, iterations: tuple[int, ...]
) -> list[float]:
    """Mean over samples of |prediction - float32's| / |float32's|, after each number of iterations (FPDM)."""
    found = []
    for k in iterations if exact.iterative else iterations[:1]:
        settings = {"iterations": k} if exact.iterative else {}
        ours = run(model, precision, batch, **settings).prediction.flatten(1)
        theirs = run(exact, "no", batch, **settings).prediction.flatten(1)
        found.append(float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).mean()))
    return found


def gradient_deviation(model: nn.Module, exact: nn.Module, source: Source, precision: str, batch: Batch) -> float:
    """|gradient - float32's| / |float32's| of the training loss over all weights; n = m = 6 for an FPDM."""
    gradients = []
    for network, how in ((model, precision), (exact, "no")):
        network.zero_grad()
        settings = {"iterations": 6, "iterations_no_grad": 6} if exact.iterative else {}
        output = run(network, how, batch, **settings)
        # Scaled as by a loss scaler, because small gradients are lost in float16.
        (1024 * source.process.losses(output.prediction, batch.x0, batch.noise, batch.t).total.mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def largest_steps(half_stream: bool, batch: int, recompute: bool) -> dict[str, int]:
    """Peak bytes of the largest training step of DiT-XL/2 and FPDM-XL/2 in 16 bits, by network.

    recompute: with gradient checkpointing.
    """
    sizes = {"DiT-XL/2": {}, "FPDM-XL/2": {"iterations": 12}}
    found = {}
    for name, iterations in sizes.items():
        with torch.device("meta"):
            model = in_form(build_model(name), half_stream)
        found[name] = step_memory(model, batch, True, recompute, **iterations).peak
    return found


def residual_table(rows: dict[str, list[float]], iterations: tuple[int, ...]) -> str:
    head = ["FPDM, residual after", *(f"{k} it." for k in iterations)]
    return markdown_table(head, [[label, *(f"{value:.1e}" for value in values)] for label, values in rows.items()])


def deviation_table(rows: dict[tuple[str, str], tuple[list[float], float]], iterations: tuple[int, ...]) -> str:
    """rows: (family, form) -> (results of `deviations`, result of `gradient_deviation`)."""
    head = ["", "", *(f"prediction, {k} it." for k in iterations), "gradient"]
    body = []
    for (family, label), (predictions, gradient) in rows.items():
        cells = [f"{value:.2%}" for value in predictions]
        body.append([family, label, *cells, *[""] * (len(iterations) - len(cells)), f"{gradient:.2%}"])
    return markdown_table(head, body, 2)
