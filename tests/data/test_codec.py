import pytest
import torch
from diffusers import AutoencoderKL

from fpdm.data.codec import open_codec


def test_vae_latents_are_scaled_once(tiny_vae):
    codec, vae = open_codec(str(tiny_vae)), AutoencoderKL.from_pretrained(tiny_vae).eval()
    assert (codec.channels, codec.downsampling, codec.scale, codec.clip) == (4, 2, 0.5, None)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    moments = codec.encode(images)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        torch.testing.assert_close(moments.mean, posterior.mean * 0.5)
        torch.testing.assert_close(moments.std, posterior.std * 0.5)
        torch.testing.assert_close(codec.decode(moments.mean), vae.decode(posterior.mean).sample)


def test_fingerprint_follows_the_weights(tiny_vae, tmp_path):
    vae = AutoencoderKL.from_pretrained(tiny_vae)
    vae.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1
    vae.save_pretrained(tmp_path / "other")
    prints = [open_codec(str(path)).fingerprint for path in (tiny_vae, tmp_path / "same", tmp_path / "other")]
    assert prints[0] == prints[1] != prints[2]


def test_pixels():
    codec, images = open_codec("pixels"), torch.rand(2, 3, 8, 8)
    assert torch.equal(codec.decode(codec.encode(images).mean), images)
    assert codec.encode(images).std is None and codec.clip == 1


def test_sources_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_codec(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no such folder in {tmp_path}"):
        open_codec(str(tmp_path / "vaee"))  # a mistyped path is not asked for on the Hub
    with pytest.raises(FileNotFoundError, match="not a Hub repository that can be reached"):
        open_codec("nobody/no-such-vae")


def test_resolution_that_does_not_fit(tiny_vae):
    with pytest.raises(ValueError, match="not a multiple of 2"):
        open_codec(str(tiny_vae)).encode(torch.zeros(1, 3, 15, 15))
