"""Norms of a block: layer norm and RMS norm.

D width, d width of an attention head.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps), times a learned weight if there is one: (..., D) -> (..., D) in the type of x.

    The statistics are float32 in every precision. torch's autocast makes sure of that for layer norm only.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(x.dtype)


QKNorm = partial(RMSNorm, eps=NORM_EPS)  # of a head's queries or keys (..., d), with a learned weight (d,)


def make_norm(kind: str, hidden_size: int) -> nn.Module:
    """The norm (B, N, D) -> (B, N, D) that is one of NORMS, without weights of its own: the modulation has them."""
    if kind == "rms":
        return RMSNorm(hidden_size, NORM_EPS, elementwise_affine=False)
    return nn.LayerNorm(hidden_size, NORM_EPS, elementwise_affine=False)
