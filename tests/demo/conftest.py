"""Shared by the tests of the page: models to choose from, and a server."""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch

from fpdm.demo.models import Offered, open_models
from fpdm.demo.request import RANDOM, Bounds, Shared, Way

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def released():
    """The released FPDM."""
    return open_models(["assets/fpdm-digits"])["fpdm-digits"]


@pytest.fixture(scope="session")
def models(released):
    """The released FPDM, and an untrained DiT with its codec and without label dropout."""
    from fpdm.loading import make_source
    from fpdm.models import build_model

    torch.manual_seed(0)
    network = build_model("DiT-XS/2", hidden_size=32, num_heads=2, in_channels=4, input_size=8, num_classes=10,
                          class_dropout=0.0)  # fmt: skip
    source = make_source(network.eval(), released.source.process, released.source.codec)
    return {"fpdm": released, "dit": Offered("dit", "results/dit", source, released.class_names)}


@pytest.fixture(scope="session")
def bounds():
    return Bounds(images=64, budget=480, iterations=32)


@pytest.fixture
def shared():
    return Shared(label=RANDOM, images=4, seed=0, budget=12)


@pytest.fixture
def way():
    return Way("fpdm", iterations=1, allocation="constant", reuse=True, reuse_weight=1.0, sampler="ddim", cfg_scale=1.0)


@pytest.fixture(scope="session")
def tools():
    """What docs/_tools/demo_pictures.py has: a browser and a visitor."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (pip install -e .[test])")
    return runpy.run_path(str(ROOT / "docs" / "_tools" / "demo_pictures.py"))


@pytest.fixture(scope="module")
def server(models, bounds, tools):
    """The address of the page, served by this process."""
    pytest.importorskip("gradio")
    from fpdm.demo.page import build, serve

    page = build(models, bounds, queue=2)
    yield serve(page, "127.0.0.1", tools["free_port"]())
    page.close()
