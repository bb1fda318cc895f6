"""Shared by all tests: recorded numbers, and small data that every part can run on."""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

# Before torch starts its threads: CI has two cores, and threads that outnumber them wait for each other without end.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # whatever the process that started this one has set
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may need the network
os.environ.setdefault("TQDM_MININTERVAL", "30")

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from fpdm.config import DataConfig, EncodeConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.evaluation.features import cached_classifier
from fpdm.evaluation.samples import load_labelled
from fpdm.reproduction.digits import RESOLUTION, TRAINING_DIGITS

REFERENCE = Path(__file__).parent / "reference"


def pytest_addoption(parser):
    parser.addoption("--rehearse", action="store_true", help="without a GPU, run tests/gpu on the CPU where it can be")


# Files that take minutes, the longest first: begun last, they would leave all processes but one without work.
SLOW = ("test_quickstart.py", "test_vae.py", "test_reproduce.py", "test_your_own_idea.py", "test_benchmark.py",
        "test_processes.py", "test_scripts.py", "test_wheel.py", "test_objective.py", "test_stopping.py",
        "test_soak.py", "test_on_gpu.py", "test_sample_script.py", "test_compiled.py")  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of the most tests


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
    if torch.cuda.is_available() or config.getoption("rehearse"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))


TINY = {  # what makes a script that takes minutes take seconds
    "quickstart.py": ["--seconds", 1, "--vae-steps", 4, "--images", 70, "--iterations", "[1,2]", "--budget", 24,
                      "--large-budget", 36],
    "reproduce.py": ["--seconds", 0.2, "--seeds", 1, "--samples", 65, "--vae-steps", 6, "--targets", "fig5",
                     "--train", "--model.num_heads 2 --optim.batch_size 8 --run.log_every 1"],
    "benchmark.py": ["--size", "XS", "--patch", 2, "--latent", "4,8,8", "--batch-size", 2, "--memory-batch-size", 4,
                     "--updates", 2, "--sizes", "XS", "--batch-sizes", "1,2", "--modes", "eager", "--budgets", "12,24",
                     "--iterations", 2, "--repeats", 2, "--records", 300, "--processes", "2,8", "--steps", 2,
                     "--vae", "assets/fpdm-digits/vae"],
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny():
    """The words that make a script tiny, by its name."""
    return {script: [str(word) for word in words] for script, words in TINY.items()}


@pytest.fixture(scope="session")
def digits_classifier(tmp_path_factory):
    """A folder with the classifier of the training digits: trained once, by one process of the tests for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits-classifier"
    cached_classifier(*load_labelled(TRAINING_DIGITS, RESOLUTION), folder)
    return folder


@pytest.fixture(scope="session")
def warm_executable():
    """A program that stands for Python and starts in a fraction of a second; Python itself where there is no such."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    warm = runpy.run_path(str(Path(__file__).with_name("warm_python.py")))
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        python = warm["WarmPython"](Path(folder))
        yield str(python.executable)
        python.close()


@pytest.fixture(scope="module")
def warm_python(warm_executable):
    """The processes of a module's tests, and theirs, have their libraries imported; see tests/warm_python.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_executable)
        yield


class Recorded(dict):
    """Tensors of one reference file by name; `.config` is the model's size, `.state` its weights."""

    def __init__(self, name: str):
        with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
            super().__init__({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            self.config = json.loads((file.metadata() or {}).get("config", "{}"))
        self.state = {key.removeprefix("state/"): value for key, value in self.items() if key.startswith("state/")}


class HostReads(TorchDispatchMode):
    """Counts the operations for whose result a program waits for the device, if it has one."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        lists = [part for part in args if name.startswith("index") and isinstance(part, (list, tuple))]
        by_mask = any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for part in lists for x in part)
        self.count += by_mask or name.startswith(self.OPERATIONS)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def host_reads():
    return HostReads


@pytest.fixture(scope="session")
def recorded():
    return Recorded


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """24 coloured 40x36 images in three class folders."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir()
        for i in range(8):
            base = np.zeros(3)
            base[label] = 160
            pixels = (base + rng.integers(0, 90, (36, 40, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory):
    """A folder with an untrained AutoencoderKL: 16x16 images to 8x8x4 latents."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory, image_folder, tiny_vae):
    """A latent store of `image_folder` at 16x16: 24 records of 8x8x4, both flips."""
    folder = tmp_path_factory.mktemp("store") / "latents"
    config = EncodeConfig(resolution=16, batch_size=10)
    encode(open_images(image_folder), open_codec(str(tiny_vae)), folder, config, torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def held_out_store(tmp_path_factory, image_folder, tiny_vae):
    """A store like `tiny_store`, of other images of the same classes: 11 records, no mirror images."""
    root, rng = tmp_path_factory.mktemp("held-out"), np.random.default_rng(1)
    for i in range(11):
        folder = root / "images" / ("ant", "bee", "cow")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    config, codec = EncodeConfig(resolution=16, mirror=False), open_codec(str(tiny_vae))
    encode(open_images(root / "images"), codec, root / "latents", config, torch.device("cpu"))
    return root / "latents"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_store):
    """The folder of an FPDM trained on `tiny_store` for some steps, so that its solves are not all alike."""
    from fpdm.training.loop import train

    return train(
        ExperimentConfig(
            model=ModelConfig(name="FPDM-XS/2", hidden_size=32, num_heads=2),
            data=DataConfig(latents=str(tiny_store)),
            optim=OptimConfig(steps=20, batch_size=8, lr=3e-3),
            run=RunConfig(results=str(tmp_path_factory.mktemp("runs"))),
        )
    )


@pytest.fixture(scope="session")
def pixel_store(tmp_path_factory, image_folder):
    """The pixels of `image_folder` at 8x8 as a store: 24 records of 8x8x3, both flips."""
    folder = tmp_path_factory.mktemp("pixels") / "latents"
    encode(open_images(image_folder), open_codec("pixels"), folder, EncodeConfig(resolution=8), torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file like torch-fidelity's Inception weights, with random numbers in it."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    class Untrained(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Untrained("x", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def run_sampler():
    """Runs a plan from noise x with labels y, with any solver, guidance and way of solving."""
    from fpdm.sampling.call import ModelCalls
    from fpdm.sampling.guidance import Guidance
    from fpdm.sampling.sampler import run_plan
    from fpdm.sampling.solvers import make_solver
    from fpdm.sampling.solving import Solving

    def run(source, plan, x, y, sampler="ddim", eta=0.0, step_noise=None, guidance=None, solving=None, on_step=None):
        calls = ModelCalls(source, y, guidance or Guidance(), solving or Solving())
        advance = make_solver(sampler, source.process, plan.timesteps, eta, step_noise)
        return run_plan(calls, plan, x, advance, on_step)

    return run
