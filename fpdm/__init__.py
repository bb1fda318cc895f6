"""Fixed Point Diffusion Models: diffusion transformers with an implicit layer.

The most used names are here. Each is imported when it is first used, so that
`import fpdm.models` stays fast.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "DiT": "fpdm.models",
    "FixedPointDiT": "fpdm.models",
    "build_model": "fpdm.models",
    "Diffusion": "fpdm.processes",
    "FPDMPipeline": "fpdm.pipeline",
    "SamplingConfig": "fpdm.sampling.settings",
    "evaluate": "fpdm.evaluation.evaluate",
    "load_checkpoint": "fpdm.loading",
    "load_source": "fpdm.loading",
    "sample": "fpdm.sampling.generate",
    "sample_to_folder": "fpdm.sampling.folder",
    "save_grid": "fpdm.sampling.images",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'fpdm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
