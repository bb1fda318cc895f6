"""The commands that are killed, stopped and starved, at tiny size, and what of their results must be the same."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from fpdm.data.latents import LatentStore
from fpdm.soak.material import DIT, FPDM, SNAPSHOTS, TINY, VAE, Material
from fpdm.soak.outcome import Lost
from fpdm.soak.results import files_result, run_intact, run_result
from fpdm.soak.studies import benchmark, quickstart, reproduction, sampling_study
from fpdm.soak.work import Work

BF16 = ["--run.mixed_precision", "bf16"]


def training(*options, processes: int = 1, share: float = 1.0) -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["train", "--data.latents", material.store, "--run.results", folder / "runs", *TINY, *options]

    return Work(words, run_result, run_intact, processes, share)


def encoding(processes: int) -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["encode_latents", "--images", material.images, "--vae", material.vae, "--resolution", 16,
                "--batch-size", 3, "--shard", 5, "--out", folder / "store"]  # fmt: skip

    return Work(words, files_result, store_intact, processes)


def store_intact(folder: Path) -> None:
    if (folder / "store" / "manifest.json").exists():
        store = LatentStore(folder / "store")
        store.read(torch.arange(len(store)).numpy())


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
        return material.score_words(material.samples, folder)

    def intact(folder: Path) -> None:
        if (folder / "score.json").exists():
            json.loads((folder / "score.json").read_text())

    def result(folder: Path) -> dict:
        scores = json.loads((folder / "score.json").read_text())
        del scores["settings"]["cache"]
        return scores

    return Work(words, result, intact)


def exporting(words: Callable[[Material], list]) -> Work:
    """A command that writes a folder of a model, in `exported`."""

    def intact(folder: Path) -> None:
        if (folder / "exported").exists():
            from fpdm.loading import load_checkpoint

            load_checkpoint(folder / "exported")

    return Work(lambda material, folder: [*words(material), "--out", folder / "exported"], files_result, intact)


def importing() -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["import_latents", "--source", material.extracted, "--shard", 2, "--out", folder / "store"]

    return Work(words, files_result, store_intact)


def plotting() -> Work:
    def words(material: Material, folder: Path) -> list:
        return ["plot_run", "--runs", material.run, "--out", folder / "curves.png"]

    def intact(folder: Path) -> None:
        from PIL import Image

        if (folder / "curves.png").exists():
            with Image.open(folder / "curves.png") as image:
                image.load()

    return Work(words, lambda folder: {"names": sorted(files_result(folder))}, intact)


WORKS: dict[str, Work] = {
    "train FPDM": training(*FPDM, *SNAPSHOTS, share=2),
    "train FPDM bf16": training(*FPDM, *BF16),
    "train DiT": training(*DIT),
    "train DiT bf16": training(*DIT, *BF16),
    "train FPDM, 2 processes": training(*FPDM, processes=2),
    "train FPDM bf16, 2 processes": training(*FPDM, *BF16, processes=2),
    "train DiT, 2 processes": training(*DIT, processes=2),
    "train DiT bf16, 2 processes": training(*DIT, *BF16, processes=2),
    "train VAE": vae_training(),
    "train classifier": classifier_training(),
    "encode": encoding(1),
    "encode, 2 processes": encoding(2),
    "import latents": importing(),
    "sample": sampling(1),
    "sample, 2 processes": sampling(2),
    "evaluate": evaluation(),
    "export": exporting(lambda material: ["export", "--ckpt", material.run, "--with-vae"]),
    "export a pipeline": exporting(lambda material: ["export", "--ckpt", material.run, "--pipeline"]),
    "ema": exporting(lambda material: ["ema", "--ckpt", material.run]),
    "import checkpoint": exporting(lambda material: [
        "import_checkpoint", "--source", material.published / "published.pt", "--num-heads", 2]),
    "plot a run": plotting(),
    "study sampling": sampling_study(),
    "benchmark": benchmark(),
    "quickstart": quickstart(),
    "reproduce": reproduction(),
}  # fmt: skip
