"""Fixed Point Diffusion Models: diffusion transformers with an implicit layer."""

__version__ = "0.1.0"
