"""The memory that a training step needs, known before it runs.

A step runs on fake tensors, which have sizes but no contents, while every allocation and
release is counted. The peak is exact for the operations as written, in one process. Rounding
and fragmentation in the allocator, and the workspaces of libraries, come on top.
"""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpdm.models import Denoiser, meta_twin


class StepMemory(NamedTuple):
    """Bytes. activations: what the forward pass leaves for the backward pass. peak: the most during a whole step.

    The peak is less than the sum of the parts if gradients take the place of activations.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    peak: int


def step_memory(
    model: Denoiser,
    micro_batch: int,
    half: bool,
    recompute: bool,
    gradients_stay: bool = False,
    optimizer: int | None = None,
    averages: int = 1,
    **forward: int | tuple[int, ...],
) -> StepMemory:
    """Memory of a step with averages of the weights in float32, with `micro_batch` samples at a time.

    half: under autocast to 16 bits. gradients_stay: gradients exist throughout the step, as with
    several processes (in DDP's buckets) or several micro-batches. optimizer: bytes of its state, by
    default AdamW's. averages: how many. forward: further arguments of the model's forward, such as the
    iterations of an FPDM.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    twin = meta_twin(model)
    with FakeTensorMode():
        twin = twin._apply(lambda meta: torch.empty(meta.shape, dtype=meta.dtype)).train()
        x = torch.empty(micro_batch, twin.in_channels, *twin.latent_size)
        index, y = torch.zeros(micro_batch, dtype=torch.long), twin.y_embedder.example(micro_batch)
        drop = torch.zeros(micro_batch, dtype=torch.bool)
        if half:
            norms_in_float32(twin)
        if gradients_stay:
            for parameter in twin.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        there = [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]
        with AllocationCounter([*twin.parameters(), *twin.buffers(), *there, x, index, y, drop]) as counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = twin(x, index, y, drop_labels=drop, recompute=recompute, **forward)
            activations = counter.live
            sum(part.square().mean() for part in (output.prediction, *output.early)).backward()
    gradients = sum(p.numel() * p.element_size() for p in twin.parameters() if p.requires_grad)
    optimizer, ema = 2 * gradients if optimizer is None else optimizer, averages * weights
    peak = weights + ema + optimizer + counter.peak + (gradients if gradients_stay else 0)
    return StepMemory(weights, gradients, optimizer, ema, activations, peak)


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of tensors created while it is active; `peak` is the most that existed at once.

    existing: earlier tensors, which are not counted when operations return views of them.
    """

    def __init__(self, existing: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def norms_in_float32(model: nn.Module) -> nn.Module:
    """Make layer norms run in float32 for any input, as under a GPU's autocast; returns the model."""
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        norm.forward = partial(_float32_norm, norm)
    return model


def _float32_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
