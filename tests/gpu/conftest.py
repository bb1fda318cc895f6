"""Shared by the tests that a GPU runs. `python -m pytest tests/gpu --rehearse` runs on a CPU what it can of them, so
that the first run on a GPU is not the first run of all."""

import gc
import signal
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from fpdm.devices import allow_tf32
from fpdm.models import build_model
from fpdm.models.dit import DiT
from fpdm.models.fixed_point_dit import FixedPointDiT


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; in a rehearsal, the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda(device) -> torch.device:
    """For what no rehearsal can do: statistics of memory, waits of the host, CUDA graphs."""
    if device.type != "cuda":
        pytest.skip("needs CUDA itself, which a rehearsal on the CPU does not have")
    return device


def lacks(device: torch.device, precision: str) -> str | None:
    """Why this device cannot compute in a precision (no, bf16, fp16); None if it can."""
    if precision == "fp16" and device.type == "cpu":
        return "fp16 needs a GPU, a rehearsal has none"
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU has no bfloat16"
    return None


@pytest.fixture(params=["no", "bf16", "fp16"])
def precision(request, device) -> str:
    """Each precision that the device has; to choose among them, parametrise it with indirect=True."""
    if reason := lacks(device, request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def half(device) -> str:
    """The half precision that a user of this device would take."""
    return "fp16" if lacks(device, "bf16") else "bf16"


@pytest.fixture(autouse=True)
def exact_float32():
    """No TF32 unless a test asks for it, so that float32 is the CPU's up to the order of sums; put back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps the precision of the first run in a process; each test is a process of its own in effect."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Ctrl-C and SIGTERM end pytest, as they should where time is short; training would take them as its own, in
    fixtures too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fpdm.training.signals.SIGNALS", ())
        yield
    signal.signal(signal.SIGINT, before)


def pytest_runtest_logreport(report):
    """Say at once why a test failed, for pytest may be killed before its end; and end where the GPU is in an error
    that no later test of this process would survive."""
    if not report.failed or "tests/gpu" not in report.nodeid:
        return
    sys.__stderr__.write(f"\n{report.nodeid}\n{report.longreprtext}\n")
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except Exception as error:
            pytest.exit(f"the GPU is in error after {report.nodeid}: {error}", returncode=3)


@pytest.fixture
def empty_memory(cuda):
    """Nothing of earlier tests is freed while this one measures."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


@pytest.fixture
def network(device):
    """Makes a network of random weights; as large as they are, where and how solves start changes the images."""

    def made(name: str = "FPDM-XS/2", on: torch.device | str = device, std: float = 0.08, **overrides):
        torch.manual_seed(0)
        model: DiT | FixedPointDiT = build_model(
            name, **{"input_size": 16, "in_channels": 3, "num_classes": 4, **overrides}
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
        return model.to(on)

    return made


@pytest.fixture
def no_waiting(cuda):
    """What lets any wait of the host for the device raise, from its call on; taken back in the end."""
    yield lambda on=True: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")
