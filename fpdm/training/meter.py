"""The sums of one logging interval: losses (also per quarter of the timesteps), norms, work and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from fpdm.devices import peak_memory
from fpdm.processes import Losses

QUARTERS = 4
KEPT = ("steps", "sums", "norm", "norm_max")


def loss_sums(losses: Losses, quarter: Tensor) -> Tensor:
    """Sums over samples: loss, mse, vb, then the loss and the count of each quarter of the timesteps, (11,).

    losses (B,) each; quarter (B,) of the time, from image to noise.
    """
    by_quarter = losses.total.new_zeros(2, QUARTERS)
    by_quarter[0].index_add_(0, quarter, losses.total.detach())
    by_quarter[1].index_add_(0, quarter, torch.ones_like(losses.total))
    return torch.cat([torch.stack([loss.detach().sum() for loss in losses]), by_quarter.flatten()])


class Meter:
    """Sums over the finite steps of one logging interval, kept on the device until it ends; rates over all its steps.

    peak_tflops: of one device, if known.
    """

    def __init__(self, device: torch.device, batch_size: int, peak_tflops: float | None):
        self.device, self.batch_size, self.peak_tflops = device, batch_size, peak_tflops
        self.sums = torch.zeros(3 + 2 * QUARTERS, device=device)
        self.norm, self.norm_max, self.steps = (torch.zeros((), device=device) for _ in range(3))
        self.reset()

    def reset(self) -> None:
        for total in (self.sums, self.norm, self.norm_max, self.steps):
            total.zero_()
        self.timed = self.passes = self.flops = 0
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside, on checkpoints and previews, does not count in the rates."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, sums: Tensor, norm: Tensor, finite: Tensor, passes: int, flops: int) -> None:
        """One step: `loss_sums` over this rank's share of the batch, divided by its size; the
        gradient norm and whether it was finite (); block passes and FLOPs per image."""
        self.sums += torch.where(finite, sums, 0)
        norm = torch.where(finite, norm, 0)
        self.norm += norm
        torch.maximum(self.norm_max, norm, out=self.norm_max)
        self.steps += finite
        self.timed += 1
        self.passes, self.flops = self.passes + passes, self.flops + flops

    def state(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What a resumed run needs to log the same means as an uninterrupted one; called on every rank."""
        tensors = {name: getattr(self, name) for name in KEPT}
        tensors["sums"] = accelerator.reduce(self.sums, "mean")
        return {name: value.clone().cpu() for name, value in tensors.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`; the rates count only the time from now on."""
        for name in KEPT:
            getattr(self, name).copy_(torch.as_tensor(state[name]))

    def finish(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and ranks, rates over all ranks, TFLOP/s of one device; starts the next interval."""
        sums = accelerator.reduce(self.sums, "mean").tolist()
        per_second = self.batch_size / (time.perf_counter() - self.started)
        values, steps = {}, int(self.steps)
        if steps:  # without a finite step there is no loss
            values = {name: value / steps for name, value in zip(("loss", "mse", "vb"), sums, strict=False)}
            for q, (total, count) in enumerate(zip(sums[3 : 3 + QUARTERS], sums[3 + QUARTERS :], strict=True), 1):
                if count > 0:
                    values[f"loss_t{q}"] = total / count
            values |= {"grad_norm": float(self.norm) / steps, "grad_norm_max": float(self.norm_max)}
        tflops = self.flops * per_second / accelerator.num_processes / 1e12
        values |= {"images_per_s": self.timed * per_second, "block_passes_per_s": self.passes * per_second}
        values |= {"tflops": tflops} | ({"peak_share": tflops / self.peak_tflops} if self.peak_tflops else {})
        values |= {"peak_memory_gib": peak_memory(self.device) / 2**30}
        if self.device.type == "cuda":
            values["peak_reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
        self.reset()
        return values
