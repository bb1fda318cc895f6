"""Codecs turn images into latents and back: a VAE, or the pixels themselves.

The only place that knows a scale factor: latents outside have unit-like variance.
B images of R x R pixels, latents (B, C, R / f, R / f) with f the downsampling factor.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

PIXELS = "pixels"


class Moments(NamedTuple):
    """Mean and standard deviation of the latents (B, C, h, h); std is None for a deterministic codec."""

    mean: Tensor
    std: Tensor | None


class Codec(Protocol):
    """source: what `open_codec` was given; fingerprint: a hash of the weights;
    clip: the range of latents where it is known (pixels), for clipping predicted images."""

    source: str
    fingerprint: str
    channels: int
    downsampling: int
    scale: float
    clip: float | None

    def encode(self, images: Tensor) -> Moments:
        """Images (B, 3, R, R) in -1..1 -> scaled latent moments."""

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (B, 3, R, R), about -1..1."""


class PixelCodec:
    """The identity: diffusion on the pixels."""

    source, fingerprint = PIXELS, PIXELS
    channels, downsampling, scale, clip = 3, 1, 1.0, 1.0

    def encode(self, images: Tensor) -> Moments:
        return Moments(images, None)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class VAECodec:
    """A diffusers AutoencoderKL; scale (and shift) are the ones in its config."""

    clip = None

    def __init__(self, vae: torch.nn.Module, source: str):
        self.vae = vae.eval().requires_grad_(False)
        self.source = source
        self.fingerprint = _fingerprint(vae)
        self.channels = vae.config.latent_channels
        self.downsampling = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale = vae.config.scaling_factor
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        if images.shape[-1] % self.downsampling or images.shape[-2] % self.downsampling:
            raise ValueError(
                f"resolution {tuple(images.shape[-2:])} is not a multiple of {self.downsampling}, "
                f"the downsampling of the VAE {self.source}"
            )
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return Moments((posterior.mean.float() - self.shift) * self.scale, posterior.std.float() * self.scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.scale + self.shift).to(self.vae.dtype)).sample.float()


def open_codec(source: str, device: torch.device | str = "cpu") -> Codec:
    """`pixels`, a local folder with an AutoencoderKL, or its Hub id (downloaded once, then cached)."""
    if source == PIXELS:
        return PixelCodec()
    from diffusers import AutoencoderKL  # slow to import, and not needed for pixels

    local = Path(source).exists()
    if local and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"vae {source}: no config.json, so not a folder that an AutoencoderKL was saved to")
    parent = Path(source).parent
    if not local and (Path(source).is_absolute() or (parent != Path(".") and parent.is_dir())):
        raise FileNotFoundError(f"vae {source}: no such folder in {parent}; give a local folder, a Hub id or 'pixels'")
    try:
        vae = AutoencoderKL.from_pretrained(source, local_files_only=local)
    except OSError as error:
        if local:
            raise FileNotFoundError(f"vae {source}: holds no AutoencoderKL that can be opened ({error})") from error
        raise FileNotFoundError(
            f"vae {source}: no such folder, and not a Hub repository that can be reached; "
            "give a local folder, a Hub id or 'pixels'"
        ) from error
    return VAECodec(vae.to(device), str(Path(source).resolve()) if local else source)


def _fingerprint(vae: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
