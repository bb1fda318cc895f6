import json

import numpy as np
import pytest
import torch

from fpdm.config import VAEConfig
from fpdm.data.batches import image_batches, to_signed
from fpdm.data.codec import open_codec
from fpdm.data.images import open_images, open_parts
from fpdm.training.vae import reconstruction, train_vae

CPU = torch.device("cpu")
SMALL = {"resolution": 16, "widths": (16, 16), "batch_size": 32, "lr": 4e-3, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def trained():
    images, _ = open_parts("digits")
    config = VAEConfig(**SMALL, steps=100)
    return images, config, train_vae(images, config, CPU)


def test_training_reconstructs_images_it_has_not_seen(trained):
    _, config, vae = trained
    held_out = open_images("digits@held-out")
    _, pixels, _ = next(image_batches(held_out, 16, len(held_out)))
    variance = float((pixels.double() / 255).var())
    result = reconstruction(vae, held_out, config, CPU)
    assert result.mse < 0.05 * variance
    assert result.psnr == pytest.approx(-10 * np.log10(result.mse))


def test_quality_at_the_quickstarts_size():
    """The quickstart's VAE, a third of its steps: squared error under 5e-4 on pixels 0..1."""
    images, held_out = open_parts("digits")
    config = VAEConfig(resolution=32, widths=(16, 32, 32), batch_size=16, lr=3e-3, kl_weight=1e-3, steps=300)
    vae = train_vae(images, config, CPU)
    assert reconstruction(vae, held_out, config, CPU).mse < 5e-4


def test_latents_have_unit_deviation(trained, tmp_path):
    images, _, vae = trained
    vae.save_pretrained(tmp_path)
    codec = open_codec(str(tmp_path))
    assert codec.scale == pytest.approx(json.loads((tmp_path / "config.json").read_text())["scaling_factor"])
    _, pixels, _ = next(image_batches(images, 16, 512))
    moments = codec.encode(to_signed(pixels))
    drawn = moments.mean + moments.std * torch.randn(moments.mean.shape, generator=torch.Generator().manual_seed(0))
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)


def test_reconstruction_error_is_that_of_the_written_images(trained):
    images, config, vae = trained
    _, pixels, _ = next(image_batches(images, 16, 8))
    codec_mse = 0.0
    with torch.no_grad():
        restored = vae.decode(vae.encode(to_signed(pixels)).latent_dist.mean).sample
    levels = ((restored + 1) * 127.5).round().clamp(0, 255)
    codec_mse = float(((levels - pixels.float()) / 255).square().mean())
    assert reconstruction(vae, images.subset(list(range(8))), config, CPU).mse == pytest.approx(codec_mse, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"resolution": 30, "widths": (8, 8, 8)}, "not a multiple of 4"),
        ({"lr": 0}, "lr"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        VAEConfig(**settings)
