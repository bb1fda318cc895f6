"""The dataclasses behind YAML files and command lines, and the checks that all settings use.

Sampling has its own in `fpdm.sampling.settings`, next to the choices that it lists.

Each dataclass checks its values when built, so a wrong value is an error before any work starts.
"""

from fpdm.config.checks import check_choice, check_extent, check_one_of, check_positive, check_range
from fpdm.config.experiment import (
    DataConfig,
    DiffusionConfig,
    ExperimentConfig,
    ModelConfig,
    RunConfig,
)
from fpdm.config.optim import OptimConfig
from fpdm.config.preparation import EncodeConfig, VAEConfig
from fpdm.config.scoring import ScoringConfig
from fpdm.config.sjfb import SJFBConfig
from fpdm.config.validation import ValidationConfig

__all__ = [
    "DataConfig",
    "DiffusionConfig",
    "EncodeConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SJFBConfig",
    "ScoringConfig",
    "VAEConfig",
    "ValidationConfig",
    "check_choice",
    "check_extent",
    "check_one_of",
    "check_positive",
    "check_range",
]
