"""scikit-learn's digits, made ready: a VAE, their latents, and the features they are scored by."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.chain import run_script
from fpdm.devices import process_state
from fpdm.evaluation.classifier import Classifier, cached_classifier
from fpdm.evaluation.samples import load_labelled

RESOLUTION = 32
VAE_STEPS = 800


def prepare(out: Path, vae_steps: int = VAE_STEPS) -> None:
    """The VAE in out/vae and the latents in out/latents, unless they are there."""
    vae, latents = out / "vae", out / "latents"
    if not (vae / "config.json").exists():
        run_script("train_vae.py", "--images", "digits", "--resolution", RESOLUTION, "--widths", "[16,32,32]",
                   "--steps", vae_steps, "--batch-size", 16, "--lr", "3e-3", "--kl-weight", "1e-3",
                   "--out", vae)  # fmt: skip
    if not (latents / "manifest.json").exists():
        run_script("encode_latents.py", "--images", "digits", "--resolution", RESOLUTION, "--vae", vae,
                   "--mirror", "false", "--out", latents)  # fmt: skip


class Reference(NamedTuple):
    """images uint8 (N, 3, R, R), labels (N,), the classifier on the device and its key, features (N, F) on the CPU."""

    images: Tensor
    labels: Tensor
    classifier: Classifier
    key: str
    features: Tensor


def reference(cache: Path) -> Reference:
    """The real digits and the classifier trained on them."""
    images, labels, classes = load_labelled("digits", RESOLUTION)
    classifier, key = cached_classifier(images, labels, classes, cache)
    features = torch.cat([classifier(batch) for batch in images.split(256)])
    return Reference(images, labels, classifier.to(process_state().device), key, features)
