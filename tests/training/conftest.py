import math

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
from fpdm.processes import Diffusion


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


@pytest.fixture
def poison_losses(monkeypatch):
    """Makes the loss of some calls not a number: poison_losses(lambda call: call == 2), where 1 is the first call.

    Returns a list that grows with every call.
    """

    def poison(when):
        original, calls = Diffusion.losses, []

        def losses(self, *args):
            calls.append(1)
            found = original(self, *args)
            return found._replace(total=found.total * math.nan) if when(len(calls)) else found

        monkeypatch.setattr(Diffusion, "losses", losses)
        return calls

    return poison


def _assert_same(a, b, where="checkpoint"):
    """Two nests of containers and tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.fixture
def assert_same():
    """Compares the contents of two checkpoints."""
    return _assert_same
