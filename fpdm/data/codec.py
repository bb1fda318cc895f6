"""Codecs turn images into latents and back: a VAE, or the pixels themselves.

Only codecs know the scale factor: latents elsewhere have about unit variance.
B images of H x W pixels, latents (B, C, h, w) with h = H / f, w = W / f and f the downsampling factor.
"""

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fpdm.config import check_positive, check_range, limits
from fpdm.damage import check_memory, reason
from fpdm.extent import check_multiple
from fpdm.hub import split_revision
from fpdm.records import read_fields

PIXELS = "pixels"
# The most that is decoded at once. 16 images of 256 x 256 keep a GPU busy, and their activations stay at 1 GiB each.
# From 64 images on, diffusers puts channels first for the upsampling, and the copies take time.
MOST_PIXELS = 2**20
MOST_IMAGES = 32
VAE_WEIGHTS = "diffusion_pytorch_model"  # as diffusers names them


class LatentMoments(NamedTuple):
    """Mean and standard deviation of the latents (B, C, h, w); std is None for a deterministic codec."""

    mean: Tensor
    std: Tensor | None


class Codec(Protocol):
    """source: what `open_codec` was given; fingerprint: a hash of the weights, before any cast;
    latents_mean, latents_std: per channel, if the latents are normalised with them;
    clip: the range of latents if it is known (pixels), for clipping predicted images."""

    source: str
    fingerprint: str
    channels: int
    downsampling: int
    scale: float
    latents_mean: list[float] | None
    latents_std: list[float] | None
    clip: float | None

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the network returns them -> scaled latents."""

    def encode(self, images: Tensor) -> LatentMoments:
        """Images (B, 3, H, W) in -1..1 -> scaled latent moments."""

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (B, 3, H, W), about -1..1."""


class PixelCodec:
    """The identity: diffusion on the pixels."""

    source, fingerprint = PIXELS, PIXELS
    channels, downsampling, scale, clip = 3, 1, 1.0, 1.0
    latents_mean = latents_std = None

    def normalise(self, latents: Tensor) -> Tensor:
        return latents

    def encode(self, images: Tensor) -> LatentMoments:
        return LatentMoments(images, None)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class VAECodec:
    """A diffusers AutoencoderKL. Its config says how latents are normalised: with the scale factor, and with a
    shift, or a mean and a standard deviation per channel."""

    clip = None

    def __init__(self, vae: torch.nn.Module, source: str, fingerprint: str = ""):
        # Channels last makes encoding faster (docs/performance.md).
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.source, self.fingerprint = source, fingerprint
        config = vae.config
        self.channels = config.latent_channels
        self.downsampling = 2 ** (len(config.block_out_channels) - 1)
        self.scale = config.scaling_factor
        self.latents_mean, self.latents_std = _per_channel(config, "latents_mean"), _per_channel(config, "latents_std")
        shift = getattr(config, "shift_factor", None) or 0.0
        self._mean = torch.tensor(self.latents_mean or [shift]).view(1, -1, 1, 1)
        self._std = torch.tensor(self.latents_std or [1.0]).view(1, -1, 1, 1)

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the VAE returns them -> scaled latents."""
        return (latents - self._mean.to(latents.device)) * self.scale / self._std.to(latents.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> LatentMoments:
        check_multiple("resolution", images.shape[-2:], self.downsampling, f"the downsampling of the VAE {self.source}")
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        std = (posterior.logvar.float() / 2).exp()  # in float32, whatever the VAE's precision
        return LatentMoments(self.normalise(posterior.mean.float()), std * self.scale / self._std.to(std.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        self._mean, self._std = self._mean.to(latents.device), self._std.to(latents.device)  # once: a copy blocks
        raw = latents * self._std / self.scale + self._mean
        images = MOST_PIXELS // (raw.shape[-2] * raw.shape[-1] * self.downsampling**2)
        parts = raw.to(self.vae.dtype).split(min(max(1, images), MOST_IMAGES))
        return torch.cat([self.vae.decode(part).sample.float() for part in parts])


def open_codec(source: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Codec:
    """`pixels`, a local folder with an AutoencoderKL, or its Hub id (downloaded once, then cached; NAME@REVISION for a
    branch, tag or commit).

    dtype: of the VAE's weights and arithmetic (as stored, if not given). Images and latents
    outside of the VAE are float32.
    """
    if source == PIXELS:
        return PixelCodec()
    from diffusers import AutoencoderKL  # slow to import, and not needed for pixels

    local = Path(source).exists()
    if local and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"vae {source}: no config.json, so no AutoencoderKL was saved there")
    parent = Path(source).parent
    if not local and (Path(source).is_absolute() or (parent != Path(".") and parent.is_dir())):
        raise FileNotFoundError(f"vae {source}: no such folder in {parent}; give a local folder, a Hub id or 'pixels'")
    if local:
        check_vae(Path(source) / "config.json")
        _check_format(Path(source))
    try:
        where, revision = (source, None) if local else split_revision(source)
        vae, found = AutoencoderKL.from_pretrained(
            where, revision=revision, local_files_only=local, output_loading_info=True, use_safetensors=True
        )
        if found["missing_keys"]:
            raise OSError(f"its weights lack {sorted(found['missing_keys'])[0]}")
    except Exception as error:  # a damaged file can make diffusers raise anything
        check_memory(f"vae {source}", error)
        if local:
            raise FileNotFoundError(
                f"vae {source}: holds no AutoencoderKL that can be opened ({reason(error)})"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise FileNotFoundError(
            f"vae {source}: no such folder, and not a Hub repository that can be reached and has safetensors; "
            "give a local folder, a Hub id or 'pixels'"
        ) from error
    codec = VAECodec(vae, str(Path(source).resolve()) if local else source, fingerprint(vae))
    torch.nn.Module.to(vae, device, dtype)  # after the fingerprint of the stored weights; diffusers' own to() warns
    return codec


def _check_format(folder: Path) -> None:
    """ValueError for a folder whose weights are a pickle: only safetensors are read."""
    if not any(folder.glob(f"{VAE_WEIGHTS}*.safetensors*")) and any(folder.glob(f"{VAE_WEIGHTS}*.bin*")):
        raise ValueError(
            f"vae {folder}: its weights are a pickle ({VAE_WEIGHTS}.bin), and only safetensors are read; if you trust "
            f"it, convert it with diffusers: AutoencoderKL.from_pretrained({str(folder)!r}).save_pretrained(OTHER)"
        )


@dataclass
class VAEFacts:
    """What the config.json of an AutoencoderKL holds, where a wrong value would do harm. diffusers reads it."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    block_out_channels: list[int] = field(default_factory=lambda: [64])
    down_block_types: list[str] = field(default_factory=list)
    up_block_types: list[str] = field(default_factory=list)
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    sample_size: int | list[int] = 32


def check_vae(path: Path) -> None:
    """ValueError for a config.json of an AutoencoderKL with a wrong value."""
    known = {entry.name for entry in fields(VAEFacts)}
    found = {name: value for name, value in read_fields(path, VAEFacts).items() if name in known}
    facts = VAEFacts(**found)
    try:
        check_range(1, limits.LATENT, in_channels=facts.in_channels, out_channels=facts.out_channels,
                    latent_channels=facts.latent_channels)  # fmt: skip
        check_range(1, limits.CHANNELS, block_out_channels=facts.block_out_channels,
                    norm_num_groups=facts.norm_num_groups)  # fmt: skip
        check_range(1, limits.WORKERS, layers_per_block=facts.layers_per_block)
        check_positive(limits.FACTOR, scaling_factor=facts.scaling_factor, latents_std=facts.latents_std)
        check_range(-limits.FACTOR, limits.FACTOR, shift_factor=facts.shift_factor, latents_mean=facts.latents_mean)
        if not facts.block_out_channels:
            raise ValueError("block_out_channels=[]: give at least one")
        for name in ("down_block_types", "up_block_types"):
            if name in found and len(found[name]) != len(facts.block_out_channels):
                raise ValueError(f"{name}={found[name]}: one for each of the {len(facts.block_out_channels)} "
                                 "block_out_channels")  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore the file") from error


def _per_channel(config, name: str) -> list[float] | None:
    """The config's `name`, one number per latent channel, or None if it has no such entry."""
    values = getattr(config, name, None)
    if values is not None and len(values) != config.latent_channels:
        found = f"{name} has {len(values)} values for {config.latent_channels} channels"
        raise ValueError(f"vae: {found}; correct its config.json")
    return None if values is None else [float(value) for value in values]


def fingerprint(vae: torch.nn.Module) -> str:
    """A hash of the weights, names included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
