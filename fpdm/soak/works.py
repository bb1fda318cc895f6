"""The commands that are killed, stopped and starved, at tiny size, and what of their results must be the same."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpdm.data.latents import LatentStore
from fpdm.files import read_json
from fpdm.models import load_pretrained
from fpdm.records import read_object
from fpdm.soak.children import command, run
from fpdm.soak.outcome import Lost
from fpdm.training.checkpoint import find_checkpoint, has_checkpoint, load_trainer

STEPS = 8
RATES = {"images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib"}
TINY = ["--run.name", "run", "--run.log_every", 1, "--run.checkpoint_every", 2, "--run.keep_last", 2,
        "--run.keep_every", 4, "--run.preview_every", 0, "--optim.steps", STEPS, "--optim.batch_size", 4,
        "--optim.warmup", 2, "--resume", "auto"]  # fmt: skip
FPDM = ["--model.name", "FPDM-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--sjfb.no_grad", 2,
        "--sjfb.grad", 2]  # fmt: skip
DIT = ["--model.name", "DiT-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--model.depth", 2]
SNAPSHOTS = ["--optim.ema_profiles", "[0.1]", "--optim.ema_snapshot_every", 4]
VAE = ["--resolution", 16, "--widths", "[8,8]", "--latent-channels", 4, "--steps", 4, "--batch-size", 4]


class Material:
    """What the commands start from, made once by other commands in `folder`: images, VAE, store, run, samples.

    length: steps and images of the long runs.
    """

    def __init__(self, folder: Path, length: int = 200_000):
        self.length = length
        self.images, self.vae, self.store = folder / "images", folder / "vae", folder / "store"
        self.runs, self.samples, self.classifier = folder / "runs", folder / "samples", folder / "classifier"
        self.cache, self.whole, self.said = folder / "cache", folder / "whole", folder / "said"

    @property
    def run(self) -> Path:
        return next(self.runs.glob("*-run"))

    def make(self) -> None:
        """Make what is missing; Lost if a command fails."""
        steps = (
            (self.images, None),
            (self.vae, ["train_vae", "--images", self.images, *VAE, "--out", self.vae]),
            (self.store, ["encode_latents", "--images", self.images, "--vae", self.vae, "--resolution", 16,
                          "--out", self.store]),
            (self.runs, ["train", "--data.latents", self.store, "--run.results", self.runs, *FPDM, *TINY]),
            (self.samples, ["sample", "--ckpt", self.runs / "000-run", "--out", self.samples, "--budget", 8,
                            "--iterations", 1, "--num-samples", 9]),
            (self.classifier, ["train_classifier", "--images", self.images, "--out", self.classifier, "--widths",
                               "[4,4,8]", "--steps", 10, "--batch-size", 2]),
        )  # fmt: skip
        for target, words in steps:
            if target.with_suffix(".made").exists():
                continue
            work = (lambda: make_images(self.images)) if words is None else command(words)
            ended = run(work, self.said / f"{target.name}.txt")
            if not ended.well:
                raise Lost(f"{target} could not be made: {ended.said[-2000:]}")
            target.with_suffix(".made").touch()


def make_images(folder: Path) -> None:
    """24 coloured images of 20 x 16 pixels in three class folders."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(8):
            pixels = rng.integers(0, 90, (20, 16, 3)) + 160 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


class Work(NamedTuple):
    """words: of the command that writes into a folder. result: what must be the same after any interruption.

    intact: Lost if something in the folder of an interrupted command passes for whole and is not. processes: of the
    command. share: of all rounds, relative to other works. limit: seconds after which it hangs. synced: whether
    `intact` holds after a power failure too, before the command has run again.
    """

    words: Callable[[Material, Path], list]
    result: Callable[[Path], dict]
    intact: Callable[[Path], None]
    processes: int = 1
    share: float = 1.0
    limit: float = 120
    synced: bool = True


def training(*options, processes: int = 1, share: float = 1.0) -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["train", "--data.latents", material.store, "--run.results", folder / "runs", *TINY, *options]

    return Work(words, run_result, run_intact, processes, share)


def runs_of(folder: Path) -> list[Path]:
    """The runs that have a checkpoint, in their order."""
    return [path for path in sorted(folder.glob("runs/*-run")) if has_checkpoint(path)]


def run_intact(folder: Path) -> None:
    """The last checkpoint opens, and so does every folder that is named as one."""
    for run_folder in runs_of(folder):
        places = [find_checkpoint(run_folder), *(run_folder / "checkpoints").glob("[0-9]*[0-9]")]
        for checkpoint in places:
            load_trainer(checkpoint)
            for name in ("model", "ema"):
                load_pretrained(checkpoint / name)


def run_result(folder: Path) -> dict:
    """Weights, averages, optimizer, counters, random states and log of the last run, as digests and lines."""
    run_folder = runs_of(folder)[-1]
    checkpoint = find_checkpoint(run_folder)
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    weights = [*checkpoint.rglob("*.safetensors"), *run_folder.glob("snapshots/*.safetensors")]
    return {
        "checkpoints": sorted(path.name for path in (run_folder / "checkpoints").iterdir()),
        "latest": checkpoint.name,
        "log": [{name: value for name, value in line.items() if name not in RATES} for line in lines],
        "trainer": digest_of(load_trainer(checkpoint)),
        **{str(path.relative_to(run_folder)): digest_of(path) for path in sorted(weights)},
    }


def digest_of(value) -> str:
    """A hash of a file's bytes, or of tensors and numbers in containers."""
    if isinstance(value, Path):
        return hashlib.blake2b(value.read_bytes(), digest_size=16).hexdigest()
    if isinstance(value, Tensor):
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    if isinstance(value, dict):
        value = [[str(name), digest_of(part)] for name, part in sorted(value.items(), key=lambda item: str(item[0]))]
    elif isinstance(value, (list, tuple)):
        value = [digest_of(part) for part in value]
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def files_result(folder: Path) -> dict:
    """Names and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest_of(path) for path in files}


def encoding(processes: int) -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["encode_latents", "--images", material.images, "--vae", material.vae, "--resolution", 16,
                "--batch-size", 3, "--shard", 5, "--out", folder / "store"]  # fmt: skip

    def intact(folder: Path) -> None:
        if (folder / "store" / "manifest.json").exists():
            store = LatentStore(folder / "store")
            store.read(torch.arange(len(store)).numpy())

    return Work(words, files_result, intact, processes)


def sampling(processes: int) -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["sample", "--ckpt", material.run, "--budget", 8, "--iterations", 1, "--num-samples", 9,
                "--batch-size", 2, "--out", folder / "samples"]  # fmt: skip

    def intact(folder: Path) -> None:
        from PIL import Image

        for path in (folder / "samples").glob("[0-9]*.png"):
            with Image.open(path) as image:
                image.load()

    return Work(words, files_result, intact, processes, synced=False)


def vae_training() -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["train_vae", "--images", material.images, *VAE, "--out", folder / "vae"]

    def intact(folder: Path) -> None:
        """What says that there is a VAE: the command refuses a folder with one, so it must be whole."""
        if (folder / "vae" / "config.json").exists():
            from fpdm.data.codec import open_codec

            open_codec(str(folder / "vae"))
            for name in ("reconstruction.json", "reconstruction.png"):
                if not (folder / "vae" / name).is_file():
                    raise Lost(f"a VAE without its {name}")

    def result(folder: Path) -> dict:
        facts = json.loads((folder / "vae" / "reconstruction.json").read_text())
        del facts["settings"]["out"]
        return files_result(folder) | {"vae/reconstruction.json": facts}

    return Work(words, result, intact)


def classifier_training() -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["train_classifier", "--images", material.images, "--out", folder / "classifier", "--widths", "[4,4,8]",
                "--steps", 10, "--batch-size", 2]  # fmt: skip

    def intact(folder: Path) -> None:
        if (folder / "classifier" / "config.json").exists():
            from fpdm.evaluation.classifier import ResidualClassifier

            ResidualClassifier.load(folder / "classifier")

    return Work(words, files_result, intact, share=0.5)


def evaluation() -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["evaluate", "--samples", material.samples, "--reference", material.images, "--features", "classifier",
                "--classifier", material.classifier, "--cache", folder / "cache", "--batch-size", 4,
                "--out", folder / "score.json"]  # fmt: skip

    def intact(folder: Path) -> None:
        if (folder / "score.json").exists():
            json.loads((folder / "score.json").read_text())

    def result(folder: Path) -> dict:
        scores = json.loads((folder / "score.json").read_text())
        del scores["settings"]["cache"]
        return scores

    return Work(words, result, intact)


def reproduction() -> Work:
    """A figure of the digits; how long its model is trained is given, because it is measured otherwise."""

    def words(material: Material, folder: Path) -> list:
        steps = folder / "out" / "steps" / "fpdm.json"
        if not steps.exists():
            steps.parent.mkdir(parents=True)
            steps.write_text(json.dumps({"fpdm": 4}))
        return ["reproduce", "--out", folder / "out", "--seconds", 0.2, "--seeds", 1, "--samples", 65, "--vae-steps", 6,
                "--targets", "fig5", "--train",
                "--model.num_heads 2 --optim.batch_size 8 --run.log_every 1 --run.preview_every 0"]  # fmt: skip

    def intact(folder: Path) -> None:
        if (folder / "out" / "scores.json").exists():
            read_object(folder / "out" / "scores.json")
        for run_folder in (folder / "out" / "runs").glob("*"):
            if has_checkpoint(run_folder):
                load_trainer(find_checkpoint(run_folder))

    def result(folder: Path) -> dict:
        scores = read_object(folder / "out" / "scores.json")
        untimed = {name: [*score[:4], *score[5:]] for name, score in scores.items()}
        return {"scores": untimed, "report": (folder / "out" / "report.md").exists()}

    return Work(words, result, intact, limit=400)


def benchmark() -> Work:
    """Costs of updates and of sampling; the cases are the same, their seconds are not."""

    def words(material: Material, folder: Path) -> list:
        return ["benchmark", "--out", folder / "out", "--questions", "updates,memory,sampling", "--size", "XS",
                "--patch", 2, "--latent", "4,8,8", "--batch-size", 2, "--memory-batch-size", 4, "--updates", 2,
                "--sizes", "XS", "--batch-sizes", "1,2", "--modes", "eager", "--budgets", "12,24", "--iterations", 2,
                "--repeats", 2, "--steps", 2, "--vae", "pixels", "--latent", "3,8,8"]  # fmt: skip

    def intact(folder: Path) -> None:
        for path in (folder / "out").glob("*.json"):
            read_json(path)

    def result(folder: Path) -> dict:
        kept = {path.name: read_json(path) for path in sorted((folder / "out").glob("*.json"))}
        rows = {name: [sorted(row) for row in kept[name]] for name in kept if isinstance(kept[name], list)}
        return {"rows": rows, "files": sorted(path.name for path in (folder / "out").iterdir())}

    return Work(words, result, intact, limit=400)


WORKS: dict[str, Work] = {
    "train FPDM": training(*FPDM, *SNAPSHOTS, share=2),
    "train FPDM bf16": training(*FPDM, "--run.mixed_precision", "bf16"),
    "train DiT": training(*DIT),
    "train DiT bf16": training(*DIT, "--run.mixed_precision", "bf16"),
    "train FPDM, 2 processes": training(*FPDM, processes=2),
    "train DiT bf16, 2 processes": training(*DIT, "--run.mixed_precision", "bf16", processes=2),
    "train VAE": vae_training(),
    "train classifier": classifier_training(),
    "encode": encoding(1),
    "encode, 2 processes": encoding(2),
    "sample": sampling(1),
    "sample, 2 processes": sampling(2),
    "evaluate": evaluation(),
    "reproduce": reproduction(),
    "benchmark": benchmark(),
}
