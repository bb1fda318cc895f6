from datetime import timedelta

import pytest
import torch

from fpdm import devices


def test_bf16_is_refused_where_the_gpu_has_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    with pytest.raises(ValueError, match=r"run\.mixed_precision=bf16: Tesla V100-SXM2-32GB has no bfloat16; use fp16"):
        devices.check_precision("run.mixed_precision", "bf16", torch.device("cuda"))
    devices.check_precision("run.mixed_precision", "fp16", torch.device("cuda"))


def test_patience_reaches_the_process_group(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "PartialState", lambda **settings: asked.append(settings))
    monkeypatch.setattr(devices, "on_cpu", lambda: True)
    devices.process_state()
    devices.process_state(timedelta(hours=6))
    assert asked == [{"cpu": True}, {"cpu": True, "timeout": timedelta(hours=6)}]
