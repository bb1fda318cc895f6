"""Gradients in DDP's buckets, before the first step."""

import torch
from accelerate import Accelerator
from torch import nn

from fpdm.models import Denoiser


def settle_gradients(accelerator: Accelerator, model: nn.Module, shape: list[int], network: Denoiser) -> None:
    """Create the gradients, as zeros, in DDP's buckets before the first step accumulates any.

    DDP puts them there in the first backward pass that it synchronises. Micro-batches before it would create gradients
    outside the buckets: a second copy which, in a resumed run, comes on top of the optimizer's state.
    """
    index = torch.zeros(2, dtype=torch.long, device=accelerator.device)
    x, y = torch.zeros(2, *shape, device=accelerator.device), network.y_embedder.example(2, accelerator.device)
    arguments = {"iterations": 1} if network.iterative else {}
    if network.early_head:
        arguments["exits"] = (network.early_head,)
    with torch.compiler.set_stance("force_eager"):  # the compiler specialises on the first batches it sees
        output = model(x, index, y, drop_labels=index.bool(), **arguments)
        accelerator.backward(0 * sum(part.sum() for part in (output.prediction, *output.early)))
    model.zero_grad(set_to_none=False)
