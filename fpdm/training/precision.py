"""Which arithmetic the hardware at hand can do, checked before training starts."""

import torch


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Refuse a precision that this device does not have, with advice."""
    if mixed_precision == "fp16" and device.type != "cuda":
        raise ValueError("run.mixed_precision=fp16 needs a GPU; on a CPU use bf16 or no")
    if mixed_precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"run.mixed_precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use fp16, "
            "which is scaled automatically, or no"
        )


def allow_tf32(allowed: bool) -> None:
    """Let float32 matrix products and convolutions run as TF32 where a GPU has it."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
