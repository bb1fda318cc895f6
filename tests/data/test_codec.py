import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL

from fpdm.data.codec import open_codec
from fpdm.loading import load_checkpoint, open_model_codec


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


def test_large_batches_are_decoded_in_parts(tiny_vae, monkeypatch):
    codec, latents = open_codec(str(tiny_vae)), torch.randn(5, 4, 8, 8)
    whole, sizes = codec.decode(latents), []
    monkeypatch.setattr("fpdm.data.codec.MOST_PIXELS", 2 * 16 * 16 + 1)  # two images of 16 x 16
    codec.vae.decoder.register_forward_hook(lambda layer, given, images: sizes.append(len(images)))
    torch.testing.assert_close(codec.decode(latents), whole)
    assert sizes == [2, 2, 1]
    monkeypatch.setattr("fpdm.data.codec.MOST_PIXELS", 1)
    assert codec.decode(latents[:2]).shape == (2, 3, 16, 16) and sizes[3:] == [1, 1]
    monkeypatch.undo()
    assert codec.decode(torch.randn(64, 4, 8, 8)).shape == (64, 3, 16, 16) and sizes[5:] == [32, 32]


def test_channels_are_last_in_memory_and_files_are_as_ever(tiny_vae, tmp_path):
    codec = open_codec(str(tiny_vae))
    assert codec.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    codec.vae.save_pretrained(tmp_path)
    before, after = (AutoencoderKL.from_pretrained(path).state_dict() for path in (tiny_vae, tmp_path))
    assert all(torch.equal(before[name], after[name]) and after[name].is_contiguous() for name in before)
    assert open_codec(str(tmp_path)).fingerprint == codec.fingerprint


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


def test_a_model_whose_vae_has_moved_says_where_its_name_comes_from(tiny_run, tmp_path):
    model, facts, _ = load_checkpoint(tiny_run)
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match=r"no such folder in .*sampling\.json names this VAE: .* set vae"):
        open_model_codec(model, facts | {"codec": str(gone)})
    with pytest.raises(FileNotFoundError, match="no such folder in") as error:
        open_model_codec(model, facts, vae=str(gone))
    assert "sampling.json" not in str(error.value)


def test_another_vae_than_that_of_the_training_is_refused(tiny_run):
    """Both errors say where the other value comes from."""
    model, facts, _ = load_checkpoint(tiny_run)
    with pytest.raises(ValueError, match=r"other weights than .*the model's sampling\.json says 0123; give the VAE of"):
        open_model_codec(model, facts | {"codec_fingerprint": "0123"})
    with pytest.raises(ValueError, match=r"vae pixels has 3 latent channels.* its sampling\.json says .*trained with"):
        open_model_codec(model, facts, vae="pixels")


def test_a_hub_id_may_name_a_revision(tiny_vae, monkeypatch):
    """Two states of a repository are two sources: a store of one is not trained on with the other by mistake."""
    asked, original = [], AutoencoderKL.from_pretrained

    def download(source, revision, local_files_only, **kwargs):
        asked.append((source, revision, local_files_only))
        return original(tiny_vae, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", download)
    assert open_codec("someone/vae@v1.0").source == "someone/vae@v1.0" and open_codec("someone/vae")
    assert asked == [("someone/vae", "v1.0", False), ("someone/vae", None, False)]


def test_resolution_that_does_not_fit(tiny_vae):
    with pytest.raises(ValueError, match="resolution=15: not a multiple of 2"):
        open_codec(str(tiny_vae)).encode(torch.zeros(1, 3, 15, 15))
    with pytest.raises(ValueError, match="resolution=16x15: not a multiple of 2"):
        open_codec(str(tiny_vae)).encode(torch.zeros(1, 3, 16, 15))


@pytest.fixture
def other_config(tiny_vae, tmp_path):
    """Opens the tiny VAE with other entries in its config."""

    def opened(**entries):
        shutil.copytree(tiny_vae, tmp_path / "vae", dirs_exist_ok=True)
        path = tmp_path / "vae" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        return open_codec(str(tmp_path / "vae"))

    return opened


def test_latents_are_normalised_per_channel(tiny_vae, other_config):
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 0.25]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    plain = open_codec(str(tiny_vae)).encode(images)
    codec = other_config(latents_mean=mean, latents_std=std)
    assert (codec.latents_mean, codec.latents_std, codec.fingerprint) == (
        mean,
        std,
        open_codec(str(tiny_vae)).fingerprint,
    )
    moments, per_channel = codec.encode(images), torch.tensor(std).view(1, 4, 1, 1)
    raw = plain.mean / 0.5
    torch.testing.assert_close(moments.mean, (raw - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / per_channel)
    torch.testing.assert_close(moments.std, plain.std / per_channel)
    torch.testing.assert_close(codec.normalise(raw), moments.mean)
    torch.testing.assert_close(codec.decode(moments.mean), open_codec(str(tiny_vae)).decode(plain.mean))
    with pytest.raises(ValueError, match="latents_std has 2 values for 4 channels"):
        other_config(latents_std=[1.0, 1.0])


def test_shift_moves_all_channels(tiny_vae, other_config):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    plain, shifted = open_codec(str(tiny_vae)).encode(images), other_config(shift_factor=0.25).encode(images)
    torch.testing.assert_close(shifted.mean, plain.mean - 0.25 * 0.5)
    torch.testing.assert_close(shifted.std, plain.std)


def test_cast_weights_keep_their_fingerprint(tiny_vae):
    full, half = open_codec(str(tiny_vae)), open_codec(str(tiny_vae), dtype=torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16 and half.fingerprint == full.fingerprint
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    moments = half.encode(images)
    assert moments.mean.dtype == moments.std.dtype == half.decode(moments.mean).dtype == torch.float32
    for ours, theirs in zip(moments, full.encode(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0.03)
