"""Images -> features: Inception, DINOv2, and classifiers that need no download.

To add an extractor, write it here with a function that opens it, and name that function in EXTRACTORS, at the end.

B images of H x W pixels.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from fpdm.config import ScoringConfig
from fpdm.damage import check_memory, damaged, reason
from fpdm.evaluation.classifier import WEIGHTS, ResidualClassifier
from fpdm.evaluation.extractor import Extractor, Features, check_weights
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.weights import as_file, download_weights, read_weights, weights_key
from fpdm.extent import Extent, said
from fpdm.files import make_folder, replaced
from fpdm.locks import only_writer

SPATIAL_CHANNELS = 7  # of 192; ADM's evaluator uses the first 7 for sFID
DINOV2 = {"dinov2": "vit_large_patch14_dinov2.lvd142m", "dinov2-s": "vit_small_patch14_dinov2.lvd142m"}
DINOV2_SIZE, INCEPTION_SIZE = 224, 299
CNN_SEED = 0
CNN_STEPS = 300
CNN_BATCH = 64


class Inception(nn.Module):
    """The TensorFlow Inception of published FIDs, in torch-fidelity's port.

    It gives 2048 pool features, 1008 logits without bias (for IS), and the spatial features of sFID
    (Nash et al., 2021): 7 channels of 17 x 17.
    """

    name = "inception"

    def __init__(self, weights: str | None = None):
        """weights: a local copy of torch-fidelity's file; downloaded if not given."""
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        state = download_weights(URL_INCEPTION_V3, self.name) if weights is None else read_weights(weights, self.name)
        layers = ["2048", "logits_unbiased"]
        with damaged(weights or URL_INCEPTION_V3, f"inception weights {weights}: not torch-fidelity's Inception file"):
            # The library unpickles the file that it is given, so it gets one that was made here.
            self.network = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=as_file(state))
            check_weights(self, INCEPTION_SIZE)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> pool (B, 2048), spatial (B, 2023), logits (B, 1008)."""
        seen = []
        # TensorFlow's mixed_6/conv: the 1x1 branch of the seventh mixed layer, counted from 0.
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            pool, logits = self.network(images)
        finally:
            hook.remove()
        return Features(pool.flatten(1).float(), seen[0][:, :SPATIAL_CHANNELS].flatten(1).float(), logits.float())

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 2048)."""
        return self.features(images).pool


class DINOv2(nn.Module):
    """The class token of DINOv2 (Oquab et al., 2024) in timm's port: ViT-L/14 at 224 pixels, as in Stein et al. (2023).

    `dinov2-s` is the small network, for quick checks.
    """

    def __init__(self, name: str = "dinov2", weights: str | None = None):
        """weights: a local copy of the weights, timm's or the authors' own file; downloaded if not given."""
        super().__init__()
        import timm

        self.name = name
        # Not the file's path: older versions of timm would run a pickle's code.
        where = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": read_weights(weights, "dinov2")}}
        try:
            self.network = timm.create_model(
                DINOV2[name], pretrained=True, img_size=DINOV2_SIZE, num_classes=0, **where
            ).eval()
            check_weights(self, DINOV2_SIZE)
        except OSError as error:
            raise FileNotFoundError(
                f"weights of {DINOV2[name]} could not be downloaded; give a local copy with --dinov2 PATH"
            ) from error
        except Exception as error:  # weights of other networks can make timm raise anything
            check_memory(weights or DINOV2[name], error)
            raise ValueError(f"dinov2 weights {weights}: not those of {DINOV2[name]} ({reason(error)})") from error
        self.network.pretrained_cfg.pop("state_dict", None)  # timm would keep a second copy
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 1024), or (B, 384) for the small network."""
        config = self.network.default_cfg
        side = [DINOV2_SIZE, DINOV2_SIZE]
        x = transforms.resize(images, side, transforms.InterpolationMode.BICUBIC, antialias=True).float() / 255
        return self.network(transforms.normalize(x, list(config["mean"]), list(config["std"])))

    def features(self, images: Tensor) -> Features:
        return Features(self(images))


class Classifier(nn.Module):
    """A small convolutional classifier; its features are the last convolution's 64 channels, averaged over positions.

    They describe strokes and shapes, as Inception's do. Features after the fully connected layers were tried too: they
    mainly measure the classifier's confidence in the class.
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
        """uint8 (B, 3, H, W) -> (B, 64, h, w) float32."""
        size = tuple(images.shape[-2:])
        if min(size) < 8:
            raise ValueError(f"features=cnn: images of {said(size)} pixels; at least 8 are needed")
        x = images.float() / 127.5 - 1
        if max(size) > 64:  # 64 is enough for classification, and it bounds the time
            x = F.interpolate(x, size=tuple(min(length, 64) for length in size), mode="area")
        return self.convolutions(x)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, num_classes)."""
        return self.head(self.maps(images))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 64), each of unit standard deviation over the reference."""
        return self.maps(images).mean((2, 3)) * self.scale

    def features(self, images: Tensor) -> Features:
        return Features(self(images))


def train_classifier(images: Tensor, labels: Tensor, num_classes: int) -> Classifier:
    """Classifier fitted in seconds to images uint8 (N, 3, H, W) and labels (N,), from a fixed seed.

    It always trains on the CPU, so that scores from machines with and without a GPU can be compared.
    """
    if num_classes < 2:
        raise ValueError(
            "features=cnn needs a reference with at least two classes; "
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
    """The classifier of this reference, trained once and kept in `cache`, and its key.

    The key is a hash of the images, the labels and the recipe, so old weights are never used for another reference or
    another version of the recipe.
    """
    recipe = (CNN_SEED, CNN_STEPS, CNN_BATCH, str(Classifier(num_classes)), images.shape)
    digest = hashlib.blake2b(repr(recipe).encode(), digest_size=8)
    digest.update(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    path = cache / f"cnn-{digest.hexdigest()}.pt"
    make_folder(cache)
    with only_writer(cache, wait=True):  # another program may train the same one
        if not path.exists():
            model = train_classifier(images, labels, num_classes)
            with replaced(path) as partial:
                torch.save(model.state_dict(), partial)
            return model, digest.hexdigest()
    model = Classifier(num_classes)
    with damaged(path, f"{path} is damaged", "remove it"):
        model.load_state_dict(torch.load(path, weights_only=True))
        check_weights(model.eval().requires_grad_(False), images.shape[-1])
    return model, digest.hexdigest()


def _open_inception(config: ScoringConfig, reference: str, resolution: Extent) -> tuple[Extractor, str]:
    return Inception(config.inception), weights_key(config.inception, "torch-fidelity")


def _open_dinov2(config: ScoringConfig, reference: str, resolution: Extent) -> tuple[Extractor, str]:
    return DINOv2(config.features, config.dinov2), weights_key(config.dinov2, "timm")


def _open_cnn(config: ScoringConfig, reference: str, resolution: Extent) -> tuple[Extractor, str]:
    images, labels, classes = load_labelled(reference, resolution, workers=config.workers)
    return cached_classifier(images, labels, classes, Path(config.cache))


def _open_classifier(config: ScoringConfig, reference: str, resolution: Extent) -> tuple[Extractor, str]:
    model = ResidualClassifier.load(config.classifier)
    return model, weights_key(str(Path(config.classifier) / WEIGHTS), "")


# --features NAME -> a function of (settings, reference, resolution) that opens the extractor on the CPU, and returns it
# with a key that identifies its weights.
EXTRACTORS: dict[str, Callable[[ScoringConfig, str, Extent], tuple[Extractor, str]]] = {
    "inception": _open_inception,
    "dinov2": _open_dinov2,
    "dinov2-s": _open_dinov2,
    "cnn": _open_cnn,
    "classifier": _open_classifier,
}
FITTED = {"cnn"}  # extractors that are trained on the reference, so they need its images, not only its statistics
