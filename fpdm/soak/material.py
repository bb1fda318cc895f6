"""What the commands of a campaign start from, made by other commands when it is first asked for."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from fpdm.soak.children import command, run
from fpdm.soak.outcome import Lost

STEPS = 8
TINY = ["--run.name", "run", "--run.log_every", 1, "--run.checkpoint_every", 2, "--run.keep_last", 2,
        "--run.keep_every", 4, "--run.preview_every", 0, "--optim.steps", STEPS, "--optim.batch_size", 4,
        "--optim.warmup", 2, "--resume", "auto"]  # fmt: skip
FPDM = ["--model.name", "FPDM-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--sjfb.no_grad", 2,
        "--sjfb.grad", 2]  # fmt: skip
DIT = ["--model.name", "DiT-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--model.depth", 2]
SNAPSHOTS = ["--optim.ema_profiles", "[0.1]", "--optim.ema_snapshot_every", 4]
VAE = ["--resolution", 16, "--widths", "[8,8]", "--latent-channels", 4, "--steps", 4, "--batch-size", 4]
PICTURES = 24


class Material:
    """Parts in `folder`. length: steps and images of the long runs. Asking for a part raises Lost if it cannot be made.

    whole: uninterrupted results, which belong to this state of the code as the parts do.
    """

    def __init__(self, folder: Path, length: int = 200_000):
        self.folder, self.length = folder, length
        self.whole, self.records = folder / "whole", folder / "records"

    def make(self) -> None:
        """Make the parts that most commands need."""
        for part in (self.samples, self.classifier):
            assert part.exists()

    @property
    def images(self) -> Path:
        return self._part("images", lambda path: lambda: make_images(path))

    @property
    def vae(self) -> Path:
        return self._part("vae", lambda path: command(["train_vae", "--images", self.images, *VAE, "--out", path]))

    @property
    def store(self) -> Path:
        words = [
            "encode_latents",
            "--images",
            self.images,
            "--vae",
            self.vae,
            "--resolution",
            16,
            "--shard",
            5,
            "--out",
        ]
        return self._part("store", lambda path: command([*words, path]))

    @property
    def begun(self) -> Path:
        """The store as it is before its manifest, with a summary of each shard."""
        return self._part("begun", lambda path: lambda: make_begun(self.store, path))

    @property
    def runs(self) -> Path:
        words = ["train", "--data.latents", self.store, *FPDM, *TINY, *SNAPSHOTS, "--run.results"]
        return self._part("runs", lambda path: command([*words, path]))

    @property
    def run(self) -> Path:
        return self.runs / "000-run"

    @property
    def samples(self) -> Path:
        words = ["sample", "--ckpt", self.run, "--budget", 8, "--iterations", 1, "--num-samples", 9, "--out"]
        return self._part("samples", lambda path: command([*words, path]))

    @property
    def adaptive(self) -> Path:
        """The same with adaptive allocation, so that there is an allocation.json."""
        return self._part("adaptive", lambda path: command([*self.adaptively, "--num-samples", 3, "--out", path]))

    @property
    def adaptively(self) -> list:
        return ["sample", "--ckpt", self.run, "--steps", 2, "--iterations", 3, "--allocation", "adaptive",
                "--tolerance", 0.1]  # fmt: skip

    @property
    def classifier(self) -> Path:
        words = ["train_classifier", "--images", self.images, "--widths", "[4,4,8]", "--steps", 10, "--batch-size", 2]
        return self._part("classifier", lambda path: command([*words, "--out", path]))

    @property
    def exported(self) -> Path:
        words = ["export", "--ckpt", self.run, "--with-vae", "--out"]
        return self._part("exported", lambda path: command([*words, path]))

    @property
    def pipeline(self) -> Path:
        words = ["export", "--ckpt", self.run, "--pipeline", "--out"]
        return self._part("pipeline", lambda path: command([*words, path]))

    @property
    def scored(self) -> Path:
        """A folder with cache/ and score.json."""
        return self._part("scored", lambda path: command(self.score_words(self.samples, path)))

    def score_words(self, samples: Path, out: Path) -> list:
        return ["evaluate", "--samples", samples, "--reference", self.images, "--features", "classifier",
                "--classifier", self.classifier, "--cache", out / "cache", "--batch-size", 4,
                "--out", out / "score.json"]  # fmt: skip

    @property
    def reference(self) -> Path:
        """A folder with reference.npz."""
        words = ["evaluate", "--reference", self.images, "--resolution", 16, "--features", "classifier", "--classifier",
                 self.classifier]  # fmt: skip
        made = self._part("reference", lambda path: command(
            [*words, "--cache", path / "cache", "--make-reference", path / "reference.npz"]))  # fmt: skip
        return made

    @property
    def published(self) -> Path:
        """A folder with published.pt, as DiT's authors write it."""
        return self._part("published", lambda path: lambda: make_published(path))

    @property
    def extracted(self) -> Path:
        """Latents of another program as .npy files."""
        return self._part("extracted", lambda path: lambda: make_npy(path))

    @property
    def shards(self) -> Path:
        """Latents of another program as safetensors, with latents_stats.pt."""
        return self._part("shards", lambda path: lambda: make_safetensors(path))

    @property
    def attributes(self) -> Path:
        """A folder with attributes.csv and list.txt, about the images."""
        return self._part("attributes", lambda path: lambda: make_attributes(path))

    @property
    def study(self) -> Path:
        """The folder of a small study of sampling."""
        return self._part("study", lambda path: command(self.study_words(path)))

    def study_words(self, out: Path) -> list:
        return ["study_sampling", "--ckpt", self.run, "--reference", self.images, "--out", out, "--images", 65,
                "--batch-size", 65, "--parts", "solves", "--budget", 8, "--iterations", 1]  # fmt: skip

    def _part(self, name: str, work: Callable[[Path], Callable[[], None]]) -> Path:
        target = self.folder / name
        if not target.with_suffix(".made").exists():
            done, said = work(target), self.folder / "said" / f"{name}.txt"
            ended = run(done, said)
            if not ended.well:
                raise Lost(f"{target} could not be made: {ended.said[-2000:]}")
            target.with_suffix(".made").touch()
        return target


def make_images(folder: Path) -> None:
    """24 coloured images of 20 x 16 pixels in three class folders."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(PICTURES // 3):
            pixels = rng.integers(0, 90, (20, 16, 3)) + 160 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def make_begun(store: Path, folder: Path) -> None:
    """Of a whole store: what it was just before its end."""
    from fpdm.data.latents import load_manifest
    from fpdm.data.shards import StoreFolder

    shutil.copytree(store, folder)
    manifest = load_manifest(folder / "manifest.json")
    draft = dataclasses.replace(manifest, count=0, skipped=0, shards=[], std=0.0, content="")
    (folder / "manifest.json").unlink()
    (folder / "encoding.json").write_text(json.dumps(dataclasses.asdict(draft)))
    begun = StoreFolder(folder, draft)
    for shard in begun.shards:
        begun._load_summary(shard)


def make_published(folder: Path) -> None:
    import torch

    from fpdm.models import DiT

    torch.manual_seed(0)
    model = DiT(input_size=8, patch_size=4, in_channels=4, hidden_size=32, num_heads=2, depth=2, num_classes=3)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"ema": model.state_dict() | {"pos_embed": model.pos_embed}}, folder / "published.pt")


def make_npy(folder: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    for name in ("set_features", "set_labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(4):
        np.save(folder / "set_features" / f"{i}.npy", rng.standard_normal((1, 4, 8, 8)).astype(np.float32))
        np.save(folder / "set_labels" / f"{i}.npy", np.array([i % 2]))


def make_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        save_file({"latents": torch.randn(5, 4, 8, 8, generator=generator), "labels": torch.arange(5)},
                  folder / f"latents_{i}.safetensors")  # fmt: skip
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, folder / "latents_stats.pt")


def make_attributes(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}/{i}.png" for name in ("ant", "bee", "cow") for i in range(PICTURES // 3)]
    rows = [f"{name},{i % 2},{i / 10}" for i, name in enumerate(names)]
    (folder / "attributes.csv").write_text("\n".join(["image,Big,Red", *rows, ""]))
    listed = [f"{name} {1 - 2 * (i % 2)} 1" for i, name in enumerate(names)]
    (folder / "list.txt").write_text("\n".join([str(len(names)), "Big Red", *listed, ""]))
