"""The VAE and the latent store on the device, against the CPU's."""

import json

import numpy as np
import pytest
import torch

from fpdm.config import EncodeConfig
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore
from fpdm.precision import PRECISIONS

pytestmark = pytest.mark.gpu
IMAGES = 2 * torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
LATENTS = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_vae_encodes_and_decodes_as_on_the_cpu(tiny_vae, device):
    ours, theirs = open_codec(str(tiny_vae), device), open_codec(str(tiny_vae))
    for found, expected in zip(ours.encode(IMAGES.to(device)), theirs.encode(IMAGES), strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    decoded = ours.decode(LATENTS.to(device))
    assert decoded.device.type == device.type
    torch.testing.assert_close(decoded.cpu(), theirs.decode(LATENTS), atol=1e-4, rtol=1e-4)


def test_latents_are_normalised_per_channel_on_the_device(tiny_vae, device):
    ours, theirs = open_codec(str(tiny_vae), device), open_codec(str(tiny_vae))
    for codec in (ours, theirs):
        codec._mean = torch.tensor([0.1, -0.2, 0.3, 0.0]).view(1, 4, 1, 1)
        codec._std = torch.tensor([0.5, 1.0, 2.0, 0.25]).view(1, 4, 1, 1)
    for found, expected in zip(ours.encode(IMAGES.to(device)), theirs.encode(IMAGES), strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decode(LATENTS.to(device)).cpu(), theirs.decode(LATENTS), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.normalise(LATENTS.to(device)).cpu(), theirs.normalise(LATENTS))


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
def test_a_vae_in_half_precision_is_near(tiny_vae, device, precision):
    half, full = open_codec(str(tiny_vae), device, PRECISIONS[precision]), open_codec(str(tiny_vae), device)
    images, latents = IMAGES.to(device), LATENTS.to(device)
    for found, expected in zip(half.encode(images), full.encode(images), strict=True):
        assert found.dtype == torch.float32 and 0 < (found - expected).abs().mean() < 0.005
    assert 0 < (half.decode(latents) - full.decode(latents)).abs().mean() < 0.01


def test_decoding_in_parts_is_decoding_at_once(tiny_vae, device, monkeypatch):
    codec, latents, sizes = open_codec(str(tiny_vae), device), LATENTS.to(device), []
    whole = codec.decode(latents)
    monkeypatch.setattr("fpdm.data.codec.MOST_PIXELS", 2 * 16 * 16)
    codec.vae.decoder.register_forward_hook(lambda layer, given, images: sizes.append(len(images)))
    torch.testing.assert_close(codec.decode(latents), whole, atol=1e-4, rtol=1e-4)
    assert sizes == [2, 2, 1]


def store_of(folder, images, vae, device, **settings) -> LatentStore:
    config = EncodeConfig(resolution=16, batch_size=10, **settings)
    codec = open_codec(str(vae), device, PRECISIONS[config.precision])
    encode(open_images(images), codec, folder, config, device)
    return LatentStore(folder)


def moments_of(store: LatentStore) -> np.ndarray:
    """All moments (records, flips, parts, C, h, h), as they lie in the files."""
    return np.concatenate([shard["moments"] for shard in store._shards]).astype(np.float32)


def test_a_store_made_on_the_device_is_the_cpus(image_folder, tiny_vae, tiny_store, tmp_path, device):
    """Values within float16's rounding; labels, order and the manifest alike."""
    ours, theirs = store_of(tmp_path / "s", image_folder, tiny_vae, device), LatentStore(tiny_store)
    assert moments_of(ours).shape == (24, 2, 2, 4, 8, 8)
    np.testing.assert_allclose(moments_of(ours), moments_of(theirs), atol=2e-4, rtol=2e-3)
    for name in ("label", "image"):
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(ours._shards, theirs._shards, strict=True))
    manifests = [json.loads((store.folder / "manifest.json").read_text()) for store in (ours, theirs)]
    assert manifests[0].pop("std") == pytest.approx(manifests[1].pop("std"), rel=1e-3)
    for manifest in manifests:
        del manifest["content"]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
def test_a_store_made_in_half_precision_is_near(image_folder, tiny_vae, tiny_store, tmp_path, device, precision):
    ours = store_of(tmp_path / "s", image_folder, tiny_vae, device, precision=precision)
    difference = np.abs(moments_of(ours) - moments_of(LatentStore(tiny_store)))
    assert ours.manifest.precision == precision and 0 < difference.mean() < 0.005
