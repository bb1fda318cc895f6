"""Train a small AutoencoderKL on any image source, and measure its reconstruction error."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fpdm.config import VAEConfig
from fpdm.data.batches import ImageTensors, image_batches, image_loader, to_signed, to_uint8
from fpdm.data.images import ImageSet
from fpdm.data.order import batch_indices
from fpdm.extent import height_width
from fpdm.seeding import key
from fpdm.training.ema import EMA


class Reconstruction(NamedTuple):
    """Mean squared error of decode(encode(image)), on pixel values 0..1, and its PSNR in dB."""

    mse: float
    psnr: float


def build_vae(config: VAEConfig) -> AutoencoderKL:
    """A fresh AutoencoderKL of the configured size."""
    levels = len(config.widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.widths),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=math.gcd(8, *config.widths),
        sample_size=max(height_width("resolution", config.resolution)),  # diffusers tiles larger images
    )


def train_vae(images: ImageSet, config: VAEConfig, device: torch.device) -> AutoencoderKL:
    """Train on squared error + KL; the result's scaling_factor gives latents unit standard deviation."""
    torch.manual_seed(config.seed)
    vae = build_vae(config).to(device)
    average = EMA(vae, config.ema_decay)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step / config.steps))
    generator = torch.Generator(device).manual_seed(key("vae", config.seed))
    batches = [batch_indices(config.seed, step, config.batch_size, len(images)) for step in range(config.steps)]
    dataset = ImageTensors(images, config.resolution)
    loader = image_loader(dataset, config.workers, config.skip_broken, batch_sampler=batches)
    progress = tqdm(loader, total=config.steps, desc="train vae", unit="step")
    for step, batch in enumerate(progress):
        x = to_signed(batch.pixels.to(device))
        if config.mirror:
            flip = torch.rand(len(x), generator=generator, device=device) < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(restored, x)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = error + config.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the VAE's gradient is not finite (loss {loss.item()}); lower --lr")
        optimizer.step()
        schedule.step()
        average.update(vae, step)
        if step % 50 == 0:
            progress.set_postfix(mse=f"{error.item() / 4:.2e}", kl=f"{kl.item():.2f}")
    result = average.model
    result.register_to_config(scaling_factor=1 / latent_std(result, images, config, device))
    return result


def rate_at(progress: float) -> float:
    """Share of the peak learning rate at `progress` 0..1: rises over the first 5 %, then falls to 0 (cosine)."""
    return min(progress / 0.05 + 0.01, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def latent_std(
    vae: AutoencoderKL, images: ImageSet, config: VAEConfig, device: torch.device, most: int = 2048
) -> float:
    """Standard deviation of sampled latents before scaling, over up to `most` of the images, evenly spread.

    It includes the variation between images and within each posterior.
    """
    chosen = images.subset([int(i) for i in np.linspace(0, len(images) - 1, min(most, len(images)))])
    posteriors = [vae.encode(to_signed(pixels.to(device))).latent_dist for pixels in pixel_batches(chosen, config)]
    means = torch.cat([posterior.mean.cpu().double() for posterior in posteriors])
    variances = torch.cat([posterior.var.cpu().double() for posterior in posteriors])
    return float((means.var() + variances.mean()).sqrt())


@torch.no_grad()
def restore(vae: AutoencoderKL, pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 images (B, 3, H, W) encoded, decoded from the posterior's mean, and rounded to uint8 again, on the CPU."""
    latents = vae.encode(to_signed(pixels.to(device))).latent_dist.mean
    return to_uint8(vae.decode(latents).sample).cpu()


def reconstruction(vae: AutoencoderKL, images: ImageSet, config: VAEConfig, device: torch.device) -> Reconstruction:
    """Error over the images, with reconstructions rounded to uint8."""
    total = count = 0
    for pixels in pixel_batches(images, config):
        error = (restore(vae, pixels, device).double() - pixels.double()) / 255
        total += error.square().sum().item()
        count += pixels.numel()
    mse = total / count
    return Reconstruction(mse, -10 * math.log10(max(mse, 1e-12)))


def pixel_batches(images: ImageSet, config: VAEConfig) -> Iterator[Tensor]:
    """The images as uint8 (B, 3, H, W)."""
    for batch in image_batches(images, config.resolution, config.batch_size, config.workers, config.skip_broken):
        yield batch.pixels
