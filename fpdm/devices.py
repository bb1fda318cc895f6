"""Which device and which processes this program runs on."""

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator; accelerate must be told, or it starts no process group for CPUs."""
    return not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Device, rank and number of processes, as torchrun or `accelerate launch` set them up (gloo on CPUs)."""
    return PartialState(cpu=on_cpu())
