"""Denoising networks: DiT and the fixed point DiT."""

from fpdm.models.compiled import compile_layers
from fpdm.models.cost import block_cost, forward_cost, meta_twin
from fpdm.models.dit import Denoiser, DenoiserOutput, DiT
from fpdm.models.fixed_point_dit import FixedPointDiT
from fpdm.models.pretrained import load_pretrained, load_weights
from fpdm.models.sizes import build_model

__all__ = [
    "Denoiser",
    "DenoiserOutput",
    "DiT",
    "FixedPointDiT",
    "block_cost",
    "build_model",
    "compile_layers",
    "forward_cost",
    "load_pretrained",
    "load_weights",
    "meta_twin",
]
