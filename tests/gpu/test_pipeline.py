"""The diffusers pipeline on the device, against the CPU's images."""

import diffusers
import pytest
import torch

from fpdm.pipeline import FPDMPipeline

pytestmark = pytest.mark.gpu
SCHEDULERS = [None, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]  # None: the default one
SIZES = {"input_size": 8, "in_channels": 4, "num_classes": 3, "hidden_size": 32, "num_heads": 2}  # tiny_run's


@pytest.fixture
def pipe(network, tiny_run):
    """Opens a pipeline on a device; its weights are random, so that solves are not all alike."""

    def opened(on, scheduler: str | None = None) -> FPDMPipeline:
        made = FPDMPipeline.from_pretrained(tiny_run)
        made.model.load_state_dict(network("FPDM-XS/2", "cpu", std=0.2, **SIZES).state_dict())
        if scheduler is not None:
            made.scheduler = getattr(diffusers, scheduler).from_config(made.scheduler.config)
        made.set_progress_bar_config(disable=True)
        return made.to(on)

    return opened


def draw(pipe: FPDMPipeline, **settings) -> torch.Tensor:
    """Two latents or images from noise of the CPU, which is the same for every device."""
    noise = torch.Generator().manual_seed(0)
    settings = {"budget": 36, "iterations": 4, "output_type": "latent", **settings}
    return pipe([1, 2], generator=noise, **settings).images.float().cpu()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_draw_the_cpus_latents(pipe, device, scheduler, guidance):
    """Weights that differ by 2e-6 move latents by 7e-5."""
    ours, expected = (draw(pipe(on, scheduler), guidance_scale=guidance) for on in (device, "cpu"))
    assert ours.shape == (2, 4, 8, 8) and expected.std() > 1
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)


def test_ways_to_solve_draw_the_cpus_latents(pipe, device):
    settings = {"extrapolation": 0.5, "reuse_weight": 0.9, "anderson": 2}
    ours, expected = (draw(pipe(on), **settings) for on in (device, "cpu"))
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)
    assert (expected - draw(pipe("cpu"), reuse=False)).abs().mean() > 0.1  # the way makes a difference


def test_images_are_the_cpus(pipe, device):
    ours, expected = (draw(pipe(on), output_type="pt") for on in (device, "cpu"))
    assert ours.shape == (2, 3, 16, 16) and expected.std() > 0.01
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
def test_a_pipeline_in_half_precision_is_near(pipe, device, precision):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    made = pipe(device)
    full = draw(made)
    made.to(dtype)
    assert made.model.dtype == made.vae.dtype == dtype
    assert 0 < (draw(made) - full).abs().mean() < 0.05


def test_every_output_type_comes_from_the_device(pipe, device):
    made = pipe(device)
    assert made.device.type == device.type
    tensors = draw(made, output_type="pt")
    arrays = made([1, 2], budget=36, iterations=4, generator=torch.Generator().manual_seed(0), output_type="np")
    torch.testing.assert_close(torch.tensor(arrays.images).permute(0, 3, 1, 2), tensors, atol=1e-3, rtol=0)
    assert made([1], budget=12).images[0].size == (16, 16)
    on_device = made([1], budget=12, generator=torch.Generator(device).manual_seed(0), output_type="pt").images
    assert on_device.isfinite().all() and on_device.device.type == device.type
