"""A small residual classifier whose features images are compared by: its architecture, and its folder.

A folder holds model.safetensors and config.json. train_classifier.py makes one; assets/cifar10-classifier is one.
B images of H x W pixels.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fpdm.config import check_range, limits
from fpdm.damage import damaged
from fpdm.evaluation.extractor import Features, check_weights
from fpdm.files import new_folder
from fpdm.records import read_record

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass
class ClassifierFacts:
    """What is known of a trained classifier.

    name: part of the scores' names. resolution: every image is resized to this square. widths: channels of the three
    stages, the last of which are the features. class_names: what it tells apart. accuracy: share of held-out images
    that it gets right, by the resolution that they were first reduced to. training: how it was trained.
    """

    name: str
    resolution: int
    widths: list[int]
    class_names: list[str]
    accuracy: dict[str, float] = field(default_factory=dict)
    training: dict = field(default_factory=dict)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), each convolution 3x3 and followed by batch normalisation (He et al., 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class ResidualClassifier(nn.Module):
    """Three stages at the whole resolution, a half and a quarter of it, the last two with a residual block. Features:
    the last stage, averaged over positions, as Inception's pool features; each of unit standard deviation over the
    training images."""

    def __init__(self, facts: ClassifierFacts):
        super().__init__()
        self.facts, self.name = facts, facts.name
        check_range(1, limits.CHANNELS, widths=facts.widths)
        check_range(1, limits.RESOLUTION, resolution=facts.resolution)
        if len(facts.widths) != 3 or not facts.class_names:
            raise ValueError(
                f"widths={facts.widths}, {len(facts.class_names)} classes: three widths, at least one class"
            )
        first, second, third = facts.widths
        self.stages = nn.Sequential(
            *_convolution(3, first), nn.ReLU(),
            *_convolution(first, second, stride=2), nn.ReLU(), ResidualBlock(second),
            *_convolution(second, third, stride=2), nn.ReLU(), ResidualBlock(third),
        )  # fmt: skip
        self.head = nn.Linear(third, len(facts.class_names))
        self.register_buffer("scale", torch.ones(third))
        self.to(memory_format=torch.channels_last)  # a fifth faster on a CPU

    def pool(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W), any size -> (B, F), not yet scaled."""
        x = images.float() / 127.5 - 1
        if x.shape[-2:] != (self.facts.resolution, self.facts.resolution):
            x = resized(x, self.facts.resolution)
        return self.stages(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, classes)."""
        return self.head(self.pool(images))

    def features(self, images: Tensor) -> Features:
        return Features(self(images))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, F), the features."""
        return self.pool(images) * self.scale

    def save(self, folder: str | Path) -> None:
        """Write the weights and the facts to a new folder."""
        with new_folder(Path(folder)) as partial:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, partial / WEIGHTS)
            (partial / CONFIG).write_text(json.dumps(asdict(self.facts), indent=1) + "\n")
            (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)  # it is written readable only by its owner

    @classmethod
    def load(cls, folder: str | Path) -> "ResidualClassifier":
        """The classifier in a folder, in evaluation mode; FileNotFoundError or ValueError if there is none."""
        path = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"classifier {folder}: no {name} in it; give a folder that train_classifier.py wrote"
                )
        with damaged(path, f"classifier {folder}: damaged", "make it again"):
            model = cls(read_record(path / CONFIG, ClassifierFacts))
            model.load_state_dict(load_file(path / WEIGHTS))
            check_weights(model.eval().requires_grad_(False), model.facts.resolution)
        return model


def resized(x: Tensor, resolution: int) -> Tensor:
    """float (B, 3, H, W) -> (B, 3, resolution, resolution), bilinear, without aliasing."""
    return F.interpolate(x, size=(resolution, resolution), mode="bilinear", antialias=True)


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out)]
