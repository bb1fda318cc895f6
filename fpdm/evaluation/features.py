"""What an extractor makes of images, and the extractors whose weights others trained: Inception and DINOv2.

B images of R x R pixels.
"""

import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

EXTRACTORS = ("inception", "dinov2", "dinov2-s", "cnn")
SPATIAL_CHANNELS = 7  # of 192: ADM's evaluator takes so many of them for sFID
DINOV2 = {"dinov2": "vit_large_patch14_dinov2.lvd142m", "dinov2-s": "vit_small_patch14_dinov2.lvd142m"}
DINOV2_SIZE = 224


class Features(NamedTuple):
    """pool (B, F), which distances are taken of; Inception's spatial (B, G), for sFID, and logits (B, K), for IS."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Inception(nn.Module):
    """The TensorFlow Inception of published FIDs, by torch-fidelity: 2048 pool features, 1008 logits without bias
    (as IS takes them), and the spatial features of sFID (Nash et al., 2021): 7 channels of 17 x 17."""

    name = "inception"

    def __init__(self, weights: str | None = None):
        """weights: a local copy of torch-fidelity's file; downloaded if not given."""
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"inception weights {weights}: no such file")
        layers = ["2048", "logits_unbiased"]
        try:
            self.network = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=weights)
        except OSError as error:
            raise FileNotFoundError(
                "Inception weights could not be downloaded; give a local copy with --inception PATH, "
                "or use --features cnn, which needs none"
            ) from error
        except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"inception weights {weights}: not torch-fidelity's Inception file ({error})") from error

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """uint8 (B, 3, R, R) -> pool (B, 2048), spatial (B, 2023), logits (B, 1008)."""
        seen = []
        # TensorFlow's mixed_6/conv: the 1x1 branch of the seventh mixed layer, counted from 0.
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            pool, logits = self.network(images)
        finally:
            hook.remove()
        return Features(pool.flatten(1).float(), seen[0][:, :SPATIAL_CHANNELS].flatten(1).float(), logits.float())

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> (B, 2048)."""
        return self.features(images).pool


class DINOv2(nn.Module):
    """The class token of DINOv2 (Oquab et al., 2024), by timm, as Stein et al. (2023) take it: ViT-L/14 at 224 pixels.

    `dinov2-s` is the small one, for quick looks.
    """

    def __init__(self, name: str = "dinov2", weights: str | None = None):
        """weights: a local copy of the weights, timm's or the authors' own file; downloaded if not given."""
        super().__init__()
        import timm

        self.name = name
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"dinov2 weights {weights}: no such file")
        where = {} if weights is None else {"pretrained_cfg_overlay": {"file": weights}}
        try:
            self.network = timm.create_model(
                DINOV2[name], pretrained=True, img_size=DINOV2_SIZE, num_classes=0, **where
            ).eval()
        except OSError as error:
            raise FileNotFoundError(
                f"weights of {DINOV2[name]} could not be downloaded; give a local copy with --dinov2 PATH"
            ) from error
        except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"dinov2 weights {weights}: not those of {DINOV2[name]} ({error})") from error
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> (B, 1024), or (B, 384) of the small one."""
        config = self.network.default_cfg
        side = [DINOV2_SIZE, DINOV2_SIZE]
        x = transforms.resize(images, side, transforms.InterpolationMode.BICUBIC, antialias=True).float() / 255
        return self.network(transforms.normalize(x, list(config["mean"]), list(config["std"])))

    def features(self, images: Tensor) -> Features:
        return Features(self(images))


def weights_key(path: str | None, default: str) -> str:
    """What identifies an extractor's weights: a hash of the file, or the name of what was downloaded."""
    if path is None:
        return default
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
