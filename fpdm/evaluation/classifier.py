"""Features that need no download: a small classifier, trained in seconds on the labelled reference itself."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fpdm.evaluation.features import Features

CNN_SEED = 0
CNN_STEPS = 300
CNN_BATCH = 64


class Classifier(nn.Module):
    """A small convolutional classifier; its features are the last convolution's 64 channels, averaged over positions.

    They describe strokes and shapes, as Inception's do. What comes after them, fully connected,
    was tried as well: it tells little but how sure the classifier is of the class.
    """

    name = "cnn"
    dimensions = 64

    def __init__(self, num_classes: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, self.dimensions, 3, padding=1), nn.BatchNorm2d(self.dimensions), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * self.dimensions, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )
        self.register_buffer("scale", torch.ones(self.dimensions))

    def maps(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> (B, 64, h, h) float32."""
        if images.shape[-1] < 8:
            raise ValueError(f"features=cnn: images of {images.shape[-1]} pixels; at least 8 are needed")
        x = images.float() / 127.5 - 1
        if x.shape[-1] > 64:  # enough to classify by, and bounded in time
            x = F.interpolate(x, size=(64, 64), mode="area")
        return self.convolutions(x)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> (B, num_classes)."""
        return self.head(self.maps(images))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> (B, 64), each of unit standard deviation over the reference."""
        return self.maps(images).mean((2, 3)) * self.scale

    def features(self, images: Tensor) -> Features:
        return Features(self(images))


def train_classifier(images: Tensor, labels: Tensor, num_classes: int) -> Classifier:
    """Classifier fitted in seconds to images uint8 (N, 3, R, R) and labels (N,), from a fixed seed.

    Always on the CPU: scores made on machines with and without a GPU shall compare.
    """
    if num_classes < 2:
        raise ValueError(
            "features=cnn needs a reference with at least two classes to tell apart; "
            "use features=inception (--inception PATH for a local copy of its weights)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CNN_SEED)
        model = Classifier(num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=CNN_STEPS)
    generator = torch.Generator().manual_seed(CNN_SEED)
    for _ in tqdm(range(CNN_STEPS), desc="train cnn features", unit="step"):
        rows = torch.randint(len(images), (CNN_BATCH,), generator=generator)
        loss = F.cross_entropy(model.logits(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    features = torch.cat([model(batch) for batch in images.split(256)])
    model.scale.copy_(1 / features.std(0).clamp_min(1e-6))
    return model


def cached_classifier(images: Tensor, labels: Tensor, num_classes: int, cache: Path) -> tuple[Classifier, str]:
    """The classifier of this reference, trained once and kept in `cache`; and its key.

    The key is a hash of the images, the labels and the recipe, so another reference or
    another version of the recipe never meets old weights.
    """
    recipe = (CNN_SEED, CNN_STEPS, CNN_BATCH, str(Classifier(num_classes)), images.shape)
    digest = hashlib.blake2b(repr(recipe).encode(), digest_size=8)
    digest.update(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    path = cache / f"cnn-{digest.hexdigest()}.pt"
    if path.exists():
        model = Classifier(num_classes)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval().requires_grad_(False), digest.hexdigest()
    model = train_classifier(images, labels, num_classes)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(model.state_dict(), partial)
    os.replace(partial, path)
    return model, digest.hexdigest()
