"""The loss on held-out latents, of the averaged weights.

Noise depends on the latent's number alone, and the timestep on its place among those that are measured: they are the
same each time, in every run, and on any number of processes, so that two values differ only by the weights.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from fpdm.conditionings import CONDITIONINGS, LABELS
from fpdm.config import ExperimentConfig
from fpdm.data.latents import LatentStore, Manifest
from fpdm.devices import send
from fpdm.models import Denoiser
from fpdm.processes import Process
from fpdm.seeding import key
from fpdm.training.meter import QUARTERS, loss_sums

LOSS, DISTANCE = "val_loss", "val_fd"
GOLDEN = (math.sqrt(5) - 1) / 2
# The averaged weights -> values for the log, such as val_fd; every process calls it and gets all values.
Measure = Callable[[nn.Module], dict[str, float]]


class HeldOut:
    """Held-out latents with their noise and timesteps. Process i of n takes the batches i, i + n, i + 2 n, ..."""

    def __init__(self, config: ExperimentConfig, training: Manifest, process: Process, state: PartialState):
        """ValueError if the held-out store does not fit the training store."""
        self.settings, self.process, self.state = config.validation, process, state
        self.store = LatentStore(config.validation.latents)
        check_held_out(self.store, training, CONDITIONINGS[config.model.conditioning].of)
        count = min(self.settings.count or len(self.store), len(self.store))
        self.indices = np.unique(np.linspace(0, len(self.store) - 1, count).round().astype(int))

    @torch.no_grad()
    def loss(self, model: Denoiser) -> dict[str, float]:
        """val_loss and val_loss_t1 to t4, by quarter of the timesteps. For an FPDM these are the values at the number
        of iterations with the lowest loss, and val_loss_2it, ... are those at each number."""
        losses = {k: self._sums(model, k) for k in (self.settings.iterations if model.iterative else [None])}
        values = {}
        for k, (total, quarters) in losses.items():
            values |= {} if k is None else named(f"_{k}it", total, quarters)
        return named("", *min(losses.values())) | values

    def _sums(self, model: Denoiser, iterations: int | None) -> tuple[float, list[float]]:
        """Mean loss of all latents, and of each quarter of the timesteps."""
        size, device = self.settings.batch_size, self.state.device
        batches = range(0, len(self.indices), size)[self.state.process_index :: self.state.num_processes]
        sums = [self._batch(model, iterations, first, size, device).cpu().double() for first in batches]
        sums = sum(gather_object(sums)).tolist()
        totals, counts = sums[3 : 3 + QUARTERS], sums[3 + QUARTERS :]
        quarters = [total / count if count else math.nan for total, count in zip(totals, counts, strict=True)]
        return sums[0] / len(self.indices), quarters

    def _batch(self, model: Denoiser, iterations: int | None, first: int, size: int, device: torch.device) -> Tensor:
        numbers = self.indices[first : first + size]
        batch = self.store.read(numbers).to(device)
        noise, again = (self._noise(numbers, kind, device) for kind in ("noise", "latent"))
        # The golden ratio spreads the timesteps evenly over any stretch of the places, so over each class.
        places = np.arange(first, first + len(numbers))
        t = send(self.process.at_share(torch.from_numpy(places * GOLDEN % 1)), device)
        mean, std = batch.moments()
        x0 = mean if std is None else mean + std * again
        forward = {} if iterations is None else {"iterations": iterations}
        x_t = self.process.add_noise(x0, noise, t)
        output = model(x_t, self.process.network_time(t), batch.condition(model.conditioned_on), **forward)
        return loss_sums(self.process.losses(output.prediction, x0, noise, t), self.process.part(t, QUARTERS))

    def _noise(self, numbers: np.ndarray, kind: str, device: torch.device) -> Tensor:
        """Standard normal noise (B, C, h, w) of the latents `numbers`, the same on every device."""
        shape = self.store.manifest.shape
        generators = [np.random.Generator(np.random.Philox(key("validation", kind, int(i)))) for i in numbers]
        return send(torch.from_numpy(np.stack([g.standard_normal(shape, np.float32) for g in generators])), device)


def validate(model: Denoiser, held_out: HeldOut | None, measure: Measure | None) -> dict[str, float]:
    """Values of the averaged weights for the log; called on every rank."""
    found = held_out.loss(model) if held_out is not None else {}
    return found | (measure(model) if measure is not None else {})


def check_held_out(store: LatentStore, training: Manifest, conditioned_on: str) -> None:
    """ValueError if validation.latents cannot be compared with the training store, or is the training store.

    conditioned_on: what the network is conditioned on, labels or attributes.
    """
    ours, theirs = store.manifest, training
    if ours.content == theirs.content:
        raise ValueError(
            f"validation.latents={store.folder}: these are the latents that are trained on; encode images that are "
            "held out, as in encode_latents.py --images SOURCE@held-out (and train on SOURCE@training)"
        )
    facts = ["shape", "codec" if None in (ours.fingerprint, theirs.fingerprint) else "fingerprint", "scale"]
    for fact in [*facts, "class_names" if conditioned_on == LABELS else "attribute_names"]:
        if getattr(ours, fact) != getattr(theirs, fact):
            raise ValueError(
                f"validation.latents={store.folder}: its {fact} is {getattr(ours, fact)}, that of the training latents "
                f"{getattr(theirs, fact)}; encode both with the same VAE, and from images of the same classes "
                "or with the same attributes"
            )


def named(suffix: str, total: float, quarters: list[float]) -> dict[str, float]:
    """Log entries of one loss; quarters without a timestep are left out."""
    values = {f"{LOSS}{suffix}": total}
    by_quarter = {f"{LOSS}{suffix}_t{q}": value for q, value in enumerate(quarters, 1)}
    return values | {name: value for name, value in by_quarter.items() if math.isfinite(value)}


def score_of(values: dict[str, float]) -> float:
    """The number by which run.keep_best chooses: the Fréchet distance, or the loss where no distance is measured."""
    return values.get(DISTANCE, values.get(LOSS, math.inf))


def validation_line(step: int, values: dict[str, float]) -> str:
    """One line of the log for people."""
    parts = [f"step {step:>7d} validation"]
    for name, label in ((LOSS, "loss"), (DISTANCE, "FD")):
        if name not in values:
            continue
        counts = [key for key in values if key.startswith(f"{name}_") and key.endswith("it")]
        each = ", ".join(f"{key.removeprefix(f'{name}_').removesuffix('it')} it. {values[key]:.4g}" for key in counts)
        quarters = " ".join(f"{values[f'{name}_t{q}']:.3f}" for q in range(1, QUARTERS + 1) if f"{name}_t{q}" in values)
        by_t = f", by t {quarters}" if quarters else ""
        parts.append(f"{label} {values[name]:.4g}{by_t}{f' ({each})' if each else ''}")
    return "  ".join(parts)
