import numpy as np
import pytest
import torch
from PIL import Image

from fpdm.data.codec import PixelCodec
from fpdm.loading import make_source
from fpdm.models import build_model
from fpdm.processes import Diffusion
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.trace import Recorder, last_residuals, plot_residuals, save_trace


def source(name):
    torch.manual_seed(0)
    model = build_model(name, input_size=8, in_channels=3, num_classes=4).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return make_source(model, Diffusion(), PixelCodec())


def recorded(name, **settings):
    made, config = source(name), SamplingConfig(**settings)
    plan, recorder = plan_for(made, config), Recorder()
    images = sample_images(made, config, plan, range(3), recorder, with_residuals=made.iterative)
    assert torch.equal(images, sample_images(made, config, plan, range(3)))  # watching changes nothing
    return made, recorder.trace(plan), images


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 2.0}], ids=["plain", "guided"])
def test_residual_of_every_update_at_every_timestep(settings, tmp_path):
    made, trace, _ = recorded("FPDM-XS/2", counts=[4, 1, 2], **settings)
    assert trace.residuals.shape == (3, 3, 4)
    assert np.isfinite(trace.residuals).sum(-1).tolist() == [[4, 1, 2]] * 3
    assert last_residuals(trace.residuals)[0].tolist() == [trace.residuals[0, s, k] for s, k in enumerate((3, 0, 1))]
    assert (trace.residuals[:, 0, 1:] < trace.residuals[:, 0, :-1]).all()  # small weights: a contraction
    save_trace(trace, made.codec, tmp_path)
    with np.load(tmp_path / "residuals.npz") as file:
        assert file["timesteps"].tolist() == [999, 500, 0] and file["residuals"].shape == (3, 3, 4)
    plot_residuals(trace.timesteps, trace.residuals, tmp_path / "residuals.png")
    assert Image.open(tmp_path / "residuals.png").size[0] > 800


def test_adaptive_runs_are_traced_update_by_update(tmp_path):
    """Each image has its own number of updates at a timestep, all but the last above the tolerance."""
    settings = {"budget": 60, "iterations": 4, "allocation": "adaptive", "tolerance": 0.02}
    _, trace, _ = recorded("FPDM-XS/2", **settings)
    updates = np.isfinite(trace.residuals).sum(-1)
    assert updates.min() >= 1 and (updates.sum(1) <= 40).all()
    for image in range(3):
        for s, count in enumerate(updates[image]):
            assert (trace.residuals[image, s, : count - 1] > 0.02).all()
            assert np.isnan(trace.residuals[image, s, count:]).all()
    assert (last_residuals(trace.residuals) <= 0.02).any()
    plot_residuals(trace.timesteps, trace.residuals, tmp_path / "residuals.png")


def test_filmstrip_ends_with_the_image(tmp_path):
    made, trace, images = recorded("DiT-XS/2", steps=20)
    assert trace.residuals is None and trace.x0.shape == (20, 3, 3, 8, 8)
    frames = trace.frames()
    assert len(frames) == 12 and frames[0] == 0 and frames[-1] == 19
    save_trace(trace, made.codec, tmp_path)
    strip = np.array(Image.open(tmp_path / "filmstrip.png"))
    assert strip.shape == (3 * 10 + 2, 12 * 10 + 2, 3)
    last = strip[2:10, 11 * 10 + 2 : 12 * 10]
    assert np.abs(last.astype(int) - images[0].permute(1, 2, 0).numpy()).max() <= 1
