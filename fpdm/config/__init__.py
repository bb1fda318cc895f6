"""The dataclasses behind every YAML file and command line: nothing is configured anywhere else.

Each checks itself when built, so a wrong value is refused before any work starts.
"""

from fpdm.config.checks import check_choice, check_positive, check_range
from fpdm.config.experiment import (
    DataConfig,
    DiffusionConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SJFBConfig,
)
from fpdm.config.preparation import EncodeConfig, VAEConfig
from fpdm.config.sampling import SamplingConfig
from fpdm.config.scoring import ScoringConfig

__all__ = [
    "DataConfig",
    "DiffusionConfig",
    "EncodeConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SJFBConfig",
    "SamplingConfig",
    "ScoringConfig",
    "VAEConfig",
    "check_choice",
    "check_positive",
    "check_range",
]
