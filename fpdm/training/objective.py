"""What a training step minimises, computed from the losses of its samples; holds a learned weighting's parameters."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fpdm.config import check_choice
from fpdm.processes import Losses, Process
from fpdm.weightings import WEIGHTINGS, is_learned


class Objective(nn.Module):
    """Per sample, the total loss; with a learned weighting, its result for the mse plus the variational bound.

    With a fixed weighting there are no parameters here, and the losses are already weighted. ValueError for a
    weighting that does not exist.
    """

    def __init__(self, process: Process):
        super().__init__()
        self.name = process.weighting
        check_choice("diffusion.weighting", self.name, WEIGHTINGS)
        self.weighting = WEIGHTINGS[self.name](process.alphas_cumprod) if is_learned(self.name) else None

    def forward(self, losses: Losses, t: Tensor) -> Tensor:
        """losses of B samples at timesteps t (B,) -> (B,) float32."""
        if self.weighting is None:
            return losses.total
        weighted = self.weighting(losses.mse, t)
        if weighted.shape != t.shape:  # it would be broadcast and train something else
            raise ValueError(
                f"diffusion.weighting={self.name}: its result has shape {tuple(weighted.shape)}; "
                f"return one number per sample, {tuple(t.shape)}"
            )
        return weighted + losses.vb

    def restore(self, state: dict[str, Tensor], checkpoint: Path) -> None:
        """Load the state of a checkpoint; ValueError if its parameters are not those of this weighting."""
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"diffusion.weighting={self.name}: its parameters are not those in {checkpoint}; restore the weighting "
                f"as it was when the run started, or start a new run ({' '.join(str(error).split())})"
            ) from error


def average_gradients(accelerator: Accelerator, objective: Objective) -> None:
    """Average the gradients of a learned weighting over processes, as DDP does for the network.

    DDP is not used for it: so few parameters need no buckets, and accelerate would run it under autocast. A parameter
    without a gradient gets one of zeros: another process may have used it, and all must reduce the same tensors.
    """
    for parameter in objective.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))
