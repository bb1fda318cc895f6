import pytest
import torch
from accelerate.state import AcceleratorState

from fpdm.config import (
    DataConfig,
    DiffusionConfig,
    EncodeConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SJFBConfig,
    ValidationConfig,
)
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps the precision of the first run in a process; each test is a process of its own in effect."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def unmirrored_store(image_folder, tmp_path):
    folder = tmp_path / "unmirrored"
    config = EncodeConfig(resolution=8, mirror=False)
    encode(open_images(image_folder), open_codec("pixels"), folder, config, torch.device("cpu"))
    return folder


@pytest.fixture
def experiment(tiny_store, tmp_path):
    """A small FPDM experiment; keyword arguments replace settings by section."""

    def make(model=None, optim=None, run=None, data=None, sjfb=None, diffusion=None, validation=None):
        return ExperimentConfig(
            model=ModelConfig(**{"name": "FPDM-XS/4", "hidden_size": 32, "num_heads": 2, **(model or {})}),
            diffusion=DiffusionConfig(**(diffusion or {})),
            sjfb=SJFBConfig(**{"no_grad": 2, "grad": 2, **(sjfb or {})}),
            data=DataConfig(**{"latents": str(tiny_store), **(data or {})}),
            optim=OptimConfig(**{"steps": 4, "batch_size": 8, "lr": 1e-3, "warmup": 2, **(optim or {})}),
            run=RunConfig(**{"results": str(tmp_path / "runs"), "log_every": 2, **(run or {})}),
            validation=ValidationConfig(**{"iterations": [1, 3], **(validation or {})}),
        )

    return make
