"""Train the classifier whose features images are compared by."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fpdm.config import check_positive, check_range, limits
from fpdm.data.batches import image_batches
from fpdm.data.images import ImageSet
from fpdm.evaluation.classifier import ClassifierFacts, ResidualClassifier, resized
from fpdm.seeding import key

MOMENTUM = 0.9


@dataclass
class ClassifierConfig:
    """The classifier and its training.

    Args:
        name: name of the features, a part of the scores' names.
        resolution: images are cropped and resized to this many pixels.
        widths: channels of the three stages; the last are the features.
        coarse: half of the training images are first reduced to this many pixels, so that the features also fit images
            with less detail; null for none.
        steps: optimizer steps.
        batch_size: images per step.
        lr: peak learning rate of SGD with momentum; it rises over the first fifth, then falls to 0.
        weight_decay: weight decay.
        mirror: also train on mirror images.
        shift: images are moved by up to this many pixels.
        seed: seed of weights, order and changes to the images.
        workers: processes that decode images.
    """

    name: str = "classifier"
    resolution: int = 32
    widths: tuple[int, ...] = (32, 64, 128)
    coarse: int | None = None
    steps: int = 3_500
    batch_size: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    mirror: bool = True
    shift: int = 3
    seed: int = 0
    workers: int = 0

    def __post_init__(self):
        check_range(4, limits.RESOLUTION, resolution=self.resolution, coarse=self.coarse)
        check_range(1, limits.CHANNELS, widths=self.widths)
        check_range(10, limits.STEPS, steps=self.steps)  # the rate rises in a fifth of them
        check_range(2, limits.BATCH, batch_size=self.batch_size)
        check_positive(limits.FACTOR, lr=self.lr)
        check_range(0, limits.FACTOR, weight_decay=self.weight_decay)
        check_range(0, self.resolution - 1, shift=self.shift)
        check_range(0, limits.SEED, seed=self.seed)
        check_range(0, limits.WORKERS, workers=self.workers)
        if self.coarse is not None and self.coarse >= self.resolution:
            raise ValueError(
                f"coarse={self.coarse}: not below resolution={self.resolution}; give fewer pixels, or null"
            )
        if len(self.widths) != 3:
            raise ValueError(f"widths={list(self.widths)}: three stages, as in [32,64,128]")


def train_classifier(images: ImageSet, config: ClassifierConfig, device: torch.device) -> ResidualClassifier:
    """Train on the part of `images` that is not held out; its facts hold the accuracy on the held-out part."""
    held_out = images.held_out()
    training, kept = (images.subset([i for i, out in enumerate(held_out) if out == wanted]) for wanted in (False, True))
    for part, name in ((training, "training"), (kept, "held-out")):
        if len(part) < config.batch_size:
            raise ValueError(f"{len(part)} {name} images: fewer than batch_size={config.batch_size}; use more images")
    if len(images.class_names) < 2:
        raise ValueError("a classifier needs images of at least two classes; use a folder or zip of class folders")
    pixels, labels = _decoded(training, config)
    torch.manual_seed(config.seed)
    facts = ClassifierFacts(config.name, config.resolution, list(config.widths), images.class_names)
    settings = {f.name: getattr(config, f.name) for f in fields(ClassifierConfig)}
    facts.training = settings | {"widths": facts.widths, "images": len(training)}
    model = ResidualClassifier(facts).to(device).train()
    sgd = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": config.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), config.lr, **sgd)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.2,
                                                   anneal_strategy="linear")  # fmt: skip
    generator = torch.Generator().manual_seed(key("classifier", config.seed))
    order = torch.empty(0, dtype=torch.long)
    with tqdm(range(config.steps), desc="train classifier", unit="step") as progress:
        for step in progress:
            if len(order) < config.batch_size:
                order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
            rows, order = order[: config.batch_size], order[config.batch_size :]
            loss = F.cross_entropy(model.logits(changed(pixels[rows], config, generator).to(device)),
                                   labels[rows].to(device))  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval().requires_grad_(False)
    features = torch.cat([model(batch.to(device)).cpu() for batch in pixels.split(512)])
    model.scale.copy_(1 / features.std(0).clamp_min(1e-6))
    pixels, labels = _decoded(kept, config)
    for size in (config.resolution, config.coarse):
        if size is not None:
            seen = pixels if size == config.resolution else _levels(resized(pixels.float(), size))
            found = torch.cat([model.logits(batch.to(device)).argmax(1).cpu() for batch in seen.split(512)])
            facts.accuracy[str(size)] = float((found == labels).float().mean())
    return model


def changed(pixels: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """uint8 images (B, 3, R, R) moved, mirrored and coarsened at random, the last all or half of them."""
    count, size, shift = len(pixels), config.resolution, config.shift
    padded = F.pad(pixels.float(), [shift] * 4, mode="reflect")
    corners = torch.randint(2 * shift + 1, (count, 2), generator=generator)
    offsets = torch.arange(size)
    rows, columns = (corners[:, i, None] + offsets for i in (0, 1))
    x = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if config.mirror:
        flip = torch.rand(count, generator=generator) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    if config.coarse is not None:
        half = count // 2
        x = torch.cat([resized(_levels(resized(x[:half], config.coarse)).float(), size), x[half:]])
    return x


def _levels(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def _decoded(images: ImageSet, config: ClassifierConfig) -> tuple[Tensor, Tensor]:
    """uint8 (N, 3, R, R) and labels (N,)."""
    batches = list(image_batches(images, config.resolution, 256, config.workers))
    return torch.cat([b.pixels for b in batches]), torch.cat([b.labels for b in batches])
