"""Which device, processes and arithmetic this program runs on."""

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator; accelerate must be told, or it starts no process group for CPUs."""
    return not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Device, rank and number of processes, as torchrun or `accelerate launch` set them up (gloo on CPUs)."""
    return PartialState(cpu=on_cpu())


def check_precision(setting: str, precision: str, device: torch.device) -> None:
    """Refuse a precision (no, bf16, fp16) that this device does not have, naming the setting it came from."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(f"{setting}=fp16 needs a GPU; on a CPU use bf16 or no")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(f"{setting}=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use fp16 or no")


def allow_tf32(allowed: bool) -> None:
    """Let float32 matrix products and convolutions run as TF32 where a GPU has it."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
