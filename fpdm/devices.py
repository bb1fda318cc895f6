"""The device, processes and arithmetic of this program, and what the device can do."""

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from fpdm.interrupts import interrupts_at_once

SAMPLING_PATIENCE = timedelta(hours=6)  # the remaining work may take one process longer than another

LOST_PROCESS = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|wait timeout", re.IGNORECASE)


def on_cpu() -> bool:
    """Whether to run on the CPU: there is no accelerator, or accelerate's ACCELERATE_USE_CPU=true requests it.

    accelerate must be told; otherwise it starts no process group for CPUs.
    """
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def process_state(patience: timedelta | None = None) -> PartialState:
    """Device, rank and number of processes, as torchrun or `accelerate launch` set them up (gloo on CPUs).

    patience: how long a process waits for the others before it fails; by default the backend's ten minutes or so.
        The first call in a program decides.
    """
    settings = {} if patience is None else {"timeout": patience}
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized()
    with interrupts_at_once() if joins else nullcontext():  # it may wait long for processes that have not started
        return PartialState(cpu=on_cpu(), **settings)


def arrive() -> Callable[[], bool]:
    """Say that this process has come to a point, without waiting there. Returns a function that tells whether all have.

    It raises RuntimeError if another process has ended before, or does not come within the patience.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return lambda: True
    work = torch.distributed.barrier(async_op=True, device_ids=[process_state().local_process_index])

    def all_there() -> bool:
        if not work.is_completed():
            return False
        work.wait()  # raises what went wrong
        return True

    return all_there


def end_processes() -> None:
    """Wait for the other processes, then leave the process group together. The main one may still have work when the
    others are done; without waiting, it would work in a group that the others have left.

    DDP's objects must be deleted first. If they held the last reference to the group, deleting them would wait for a
    gloo thread that waits for Python's lock (seen with torch 2.11).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        process_state().wait_for_everyone()
        torch.distributed.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process of this program ended or did not answer in time."""
    if not torch.distributed.is_available():
        return False
    if isinstance(error, torch.distributed.DistError):  # also while the processes come together
        return True
    return torch.distributed.is_initialized() and bool(LOST_PROCESS.search(str(error)))


def check_precision(setting: str, precision: str, device: torch.device) -> None:
    """ValueError, with the name of the setting, for a precision (no, bf16, fp16) that this device does not have."""
    if precision != "no" and device.type == "mps":
        raise ValueError(
            f"{setting}={precision}: on Apple's GPUs (MPS) this runs in float32 only; use no, or set "
            "ACCELERATE_USE_CPU=true to run on the CPU"
        )
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(f"{setting}=fp16 needs a GPU; on a CPU use bf16 or no")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(f"{setting}=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use fp16 or no")


def allow_tf32(allowed: bool) -> None:
    """Let float32 matrix products and convolutions run as TF32 where a GPU has it."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32_as(allowed: bool) -> Iterator[None]:
    """`allow_tf32(allowed)` for a while; then as it was."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`. The host does not wait for a GPU, which copies from pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def skips_by_flag(device: torch.device) -> bool:
    """Whether a fused optimizer can skip a step by a flag on this device; the one for MPS ignores the flag."""
    return device.type in ("cpu", "cuda")


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its device or, if that has no float64 (MPS), on the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


# Dense matrix products, TFLOP/s, from the manufacturers' data sheets: 16-bit floats, TF32, float32. Specific first.
PEAK_TFLOPS = (
    ("GB200|B200", (2250, 1125, 80)),
    ("GH200|H200|H100 SXM|H100 80GB HBM3", (989, 494, 67)),
    ("H100 NVL", (835, 417, 60)),
    ("H100", (756, 378, 51)),
    ("H800", (989, 494, 67)),
    ("A100|A800", (312, 156, 19.5)),
    ("A40", (149.7, 74.8, 37.4)),
    ("A10G", (70, 35, 35)),
    ("A10", (125, 62.5, 31.2)),
    ("L40S", (362, 183, 91.6)),
    ("L40", (181, 90.5, 90.5)),
    ("L4", (121, 60, 30.3)),
    ("RTX 4090", (165, 82.6, 82.6)),
    ("RTX 3090", (71, 35.6, 35.6)),
    ("V100-PCIE", (112, 14, 14)),
    ("V100", (125, 15.7, 15.7)),
    ("T4", (65, 8.1, 8.1)),
)


def peak_tflops(name: str, precision: str, tf32: bool) -> float | None:
    """Peak of the GPU called `name` in a precision (no, bf16, fp16); None if unknown."""
    for pattern, (half, tensor_float, single) in PEAK_TFLOPS:
        if re.search(rf"\b({pattern})\b", name):
            return half if precision != "no" else tensor_float if tf32 else single
    return None


def device_peak_tflops(device: torch.device, precision: str, tf32: bool) -> float | None:
    """Peak of this device; None for CPUs and unknown GPUs."""
    return peak_tflops(torch.cuda.get_device_name(device), precision, tf32) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a GPU, resident on a CPU (on Windows, if it is known)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
