import pytest
import torch
from accelerate import Accelerator

from fpdm.devices import peak_tflops
from fpdm.processes import Losses
from fpdm.training.log_values import status_line
from fpdm.training.meter import Meter, loss_sums


def test_losses_are_averaged_in_all_and_by_quarter_of_t():
    accelerator = Accelerator(cpu=True)
    meter = Meter(accelerator.device, batch_size=4, peak_tflops=None)
    for scale in (1.0, 3.0):
        total = scale * torch.tensor([1.0, 2.0, 3.0, 4.0])
        losses = Losses(total, total / 2, total / 4)
        meter.add(
            loss_sums(losses, torch.tensor([0, 0, 1, 3])) / 4,
            torch.tensor(scale),
            torch.tensor(True),
            10,
            1000,
        )
    values = meter.finish(accelerator)
    assert values["loss"] == pytest.approx(5.0) and values["mse"] == pytest.approx(2.5)
    assert values["vb"] == pytest.approx(1.25)
    assert values["loss_t1"] == pytest.approx(3.0)  # 1, 2 and 3, 6
    assert values["loss_t2"] == pytest.approx(6.0) and values["loss_t4"] == pytest.approx(8.0)
    assert "loss_t3" not in values  # no sample had such a t
    assert (values["grad_norm"], values["grad_norm_max"]) == (2.0, 3.0)
    assert values["block_passes_per_s"] == pytest.approx(10 * values["images_per_s"])
    assert values["tflops"] == pytest.approx(1000 * values["images_per_s"] / 1e12)
    assert values["peak_memory_gib"] > 0.05 and "peak_share" not in values
    assert "loss" not in meter.finish(accelerator)  # begun anew


def test_share_of_the_peak():
    accelerator = Accelerator(cpu=True)
    meter = Meter(accelerator.device, batch_size=4, peak_tflops=100.0)
    meter.add(torch.zeros(11), torch.tensor(1.0), torch.tensor(True), 10, 10**9)
    values = meter.finish(accelerator)
    assert values["peak_share"] == pytest.approx(values["tflops"] / 100)


def test_status_line_says_it_all():
    values = {"loss": 0.5, "mse": 0.4, "vb": 0.1, "loss_t1": 0.1, "loss_t2": 0.2, "loss_t4": 0.4, "grad_norm": 1.5}
    values |= {"grad_norm_max": 9.0, "n": 3, "m": 2, "residual": 0.25, "lr": 1e-4, "skipped": 1, "loss_scale": 65536.0}
    values |= {"images_per_s": 100.0, "block_passes_per_s": 1500.0, "tflops": 50.0, "peak_share": 0.4}
    line = status_line(7, 10, values | {"peak_memory_gib": 3.25})
    parts = ["7/10", "loss 0.5000 = mse 0.4000 + vb 0.1000", "0.100 0.200 nan 0.400", "max 9", "n 3 m 2 res 0.250"]
    parts += ["lr 0.0001", "scale 65536", "skipped 1", "100 img/s, 1500 passes/s", "50 TFLOP/s (40% of peak)"]
    for part in [*parts, "3.25 GiB"]:
        assert part in line, part


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "expected"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", True, 125),
        ("Tesla V100-PCIE-16GB", "fp16", True, 112),
        ("NVIDIA A100-SXM4-80GB", "bf16", True, 312),
        ("NVIDIA A100-SXM4-80GB", "no", True, 156),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", True, 989),
        ("NVIDIA H100 PCIe", "bf16", True, 756),
        ("NVIDIA H200", "bf16", True, 989),
        ("NVIDIA A10G", "bf16", True, 70),
        ("Some future card", "bf16", True, None),
    ],
)
def test_peaks_by_name(name, precision, tf32, expected):
    assert peak_tflops(name, precision, tf32) == expected
