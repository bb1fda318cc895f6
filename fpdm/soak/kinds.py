"""The kinds of bad input by name."""

from functools import partial
from pathlib import Path
from random import Random

from fpdm.soak import settings
from fpdm.soak.archives import odd_npz, odd_zip
from fpdm.soak.case import Case, Kind, loaded, made, of_file
from fpdm.soak.hostile import hostile_npy, hostile_npz, hostile_torch
from fpdm.soak.images import odd_image
from fpdm.soak.material import FPDM, SNAPSHOTS, STEPS, TINY, Material
from fpdm.soak.mutations import json_field, lines, some_bytes, yaml_field


def _sample(runs: Path, material: Material, folder: Path) -> list:
    return _sample_from(runs / "000-run", material, folder)


def _sample_from(source: Path, material: Material, folder: Path) -> list:
    return ["sample", "--ckpt", source, "--steps", 1, "--iterations", 1, "--num-samples", 1, "--out", folder / "out"]


def _train(store: Path, material: Material, folder: Path) -> list:
    return ["train", "--data.latents", store, "--run.results", folder / "out", "--run.preview_every", 0,
            "--model.name", "FPDM-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--optim.batch_size", 4,
            "--optim.steps", 1, "--optim.warmup", 0]  # fmt: skip


def _resume(runs: Path, material: Material, folder: Path) -> list:
    """The command that made the material's run, a step longer."""
    words = ["train", "--data.latents", material.store, "--run.results", runs, *FPDM, *TINY, *SNAPSHOTS]
    return [*words, "--optim.steps", STEPS + 1]


def _average(runs: Path, material: Material, folder: Path) -> list:
    return ["ema", "--ckpt", runs / "000-run", "--out", folder / "out"]


def _plot(runs: Path, material: Material, folder: Path) -> list:
    return ["plot_run", "--runs", runs / "000-run", "--out", folder / "out.png"]


def _encode(images: Path, material: Material, folder: Path) -> list:
    return ["encode_latents", "--images", images, "--vae", "pixels", "--resolution", 8, "--out", folder / "out"]


def _encode_folder_of(image: Path, material: Material, folder: Path) -> list:
    return _encode(image.parent, material, folder)


def _encode_with(vae: Path, material: Material, folder: Path) -> list:
    return ["encode_latents", "--images", material.images, "--vae", vae, "--resolution", 16, "--out", folder / "out"]


def _attributes(name: str, attributes: Path, material: Material, folder: Path) -> list:
    return [*_encode(material.images, material, folder), "--attributes", attributes / name]


def _finish_store(store: Path, material: Material, folder: Path) -> list:
    return [*_encode_with(material.vae, material, folder)[:-1], store, "--shard", 5]


def _more(samples: Path, material: Material, folder: Path) -> list:
    """The command that made the material's samples, for more of them."""
    return ["sample", "--ckpt", material.run, "--out", samples, "--budget", 8, "--iterations", 1, "--num-samples", 10]


def _again_adaptive(samples: Path, material: Material, folder: Path) -> list:
    """The command that made them, when an image is missing."""
    (samples / "000002.png").unlink()
    return [*material.adaptively, "--num-samples", 3, "--out", samples]


def _score(samples: Path, material: Material, folder: Path) -> list:
    return material.score_words(samples, folder)


def _score_npz(samples: Path, material: Material, folder: Path) -> list:
    return _score(samples / "samples.npz", material, folder)


def _score_with(option: str, value: Path, material: Material, folder: Path) -> list:
    return [*_score(material.samples, material, folder), option, value]


def _score_by(features: str, option: str, weights: Path, material: Material, folder: Path) -> list:
    return [*_score_with(option, weights, material, folder), "--features", features]


def _score_against(reference: Path, material: Material, folder: Path) -> list:
    return _score_with("--reference", reference / "reference.npz", material, folder)


def _score_again(scored: Path, material: Material, folder: Path) -> list:
    return material.score_words(material.samples, scored)


def _study(study: Path, material: Material, folder: Path) -> list:
    """The command that made the material's study, once more."""
    return material.study_words(study)


def _import(path: Path, material: Material, folder: Path) -> list:
    return ["import_checkpoint", "--source", path, "--num-heads", 2, "--out", folder / "out"]


def _import_published(published: Path, material: Material, folder: Path) -> list:
    return _import(published / "published.pt", material, folder)


def _import_latents(source: Path, material: Material, folder: Path) -> list:
    return ["import_latents", "--source", source, "--out", folder / "out"]


def _command_line(material: Material, draw: Random, folder: Path) -> Case:
    name = draw.choice(settings.names_of())
    words = settings.drawn_words(name, draw, folder / "out")
    return Case(words, " ".join(map(str, words)), _options(name, words))


def _yaml(material: Material, draw: Random, folder: Path) -> Case:
    name, path = draw.choice(settings.names_of()), folder / "config.yaml"
    did = settings.drawn_yaml(name, path, draw)
    words = _train(material.store, material, folder) if name == "train" else [name]
    words = [*words, "--config", path, *settings.end_of(name, folder / "out")]
    return Case(words, f"{name}: {did}", (*_options(name, words), str(path)))


def _options(name: str, words: list) -> tuple[str, ...]:
    """What an error about settings may name: an option, or a word of the command line."""
    options = settings.options_of(name)
    leaves = {leaf for option in options for leaf in (option, option.rpartition(".")[2], option.partition(".")[0])}
    return *sorted(leaves), *settings.NOT_DRAWN, *(str(word) for word in words[1:] if len(str(word)) > 2)


def _journal(path: Path, draw: Random) -> str:
    """The store becomes an unfinished one, whose journal is changed."""
    return json_field(path.rename(path.with_name("encoding.json")), draw)


def _pickled_vae(path: Path, draw: Random) -> str:
    """In place of the weights as safetensors, the file in which diffusers kept them before."""
    path.unlink()
    return hostile_torch(path.with_suffix(".bin"), draw)


def _open_pipeline(folder: Path) -> None:
    from fpdm import FPDMPipeline

    FPDMPipeline.from_pretrained(folder)


LAST = "000-run/checkpoints/0000008"
KINDS: dict[str, Kind] = {
    "command line": _command_line,
    "YAML": _yaml,
    "manifest.json": of_file("manifest.json", "store", _train, json_field),
    "encoding.json": of_file("manifest.json", "store", _finish_store, _journal),
    "shard-*.json": of_file("shard-*.json", "begun", _finish_store, json_field),
    "shard": of_file("shard-*.bin", "store", _train, some_bytes),
    "vae/config.json": of_file("config.json", "vae", _encode_with, json_field),
    "weights of a VAE": of_file("*.safetensors", "vae", _encode_with, some_bytes),
    "VAE that runs code": of_file("*.safetensors", "vae", _encode_with, _pickled_vae),
    "sampling.json": of_file(f"{LAST}/ema/sampling.json", "runs", _sample, json_field),
    "config.json of a model": of_file(f"{LAST}/ema/config.json", "runs", _sample, json_field),
    "weights of a model": of_file(f"{LAST}/ema/model.safetensors", "runs", _sample, some_bytes),
    "trainer.pt": of_file(f"{LAST}/trainer.pt", "runs", _resume, some_bytes),
    "trainer.pt that runs code": of_file(f"{LAST}/trainer.pt", "runs", _resume, hostile_torch),
    "config.yaml of a run": of_file("000-run/config.yaml", "runs", _resume, yaml_field),
    "log.jsonl": of_file("000-run/log.jsonl", "runs", _resume, some_bytes),
    "log.jsonl, plotted": of_file("000-run/log.jsonl", "runs", _plot, some_bytes),
    "snapshot": of_file("000-run/snapshots/*.safetensors", "runs", _average, some_bytes),
    "exported folder": of_file("*.json", "exported", _sample_from, json_field),
    "weights of an export": of_file("**/*.safetensors", "exported", _sample_from, some_bytes),
    "pipeline folder": loaded(_open_pipeline, "**/*.json", "pipeline", json_field),
    "samples.json": of_file("samples.json", "samples", _more, json_field),
    "allocation.json": of_file("allocation.json", "adaptive", _again_adaptive, json_field),
    "PNG": of_file("[0-9]*.png", "samples", _score, some_bytes),
    "samples.npz": of_file("samples.npz", "samples", _score_npz, some_bytes),
    "config.json of a classifier": of_file("config.json", "classifier", partial(_score_with, "--classifier"),
                                           json_field),
    "weights of a classifier": of_file("*.safetensors", "classifier", partial(_score_with, "--classifier"), some_bytes),
    "reference.npz": of_file("reference.npz", "reference", _score_against, some_bytes),
    "reference.npz that runs code": of_file("reference.npz", "reference", _score_against, hostile_npz),
    "cached features": of_file("cache/**/gathered.npz", "scored", _score_again, some_bytes),
    "cached features that run code": of_file("cache/**/gathered.npz", "scored", _score_again, hostile_npz),
    "scores.json of a study": of_file("scores.json", "study", _study, json_field),
    "settings.json of a study": of_file("settings.json", "study", _study, json_field),
    "cached classifier": of_file("features/*.pt", "study", _study, some_bytes),
    "cached classifier that runs code": of_file("features/*.pt", "study", _study, hostile_torch),
    "Inception that runs code": made("inception.pth", partial(_score_by, "inception", "--inception"), hostile_torch),
    "DINOv2 that runs code": made("dinov2.pth", partial(_score_by, "dinov2-s", "--dinov2"), hostile_torch),
    "image": made("images/0.png", _encode_folder_of, odd_image),
    "zip": made("images.zip", _encode, odd_zip),
    "npz": made("samples.npz", _score, odd_npz),
    "attributes, CSV": of_file("attributes.csv", "attributes", partial(_attributes, "attributes.csv"), lines),
    "attributes, list": of_file("list.txt", "attributes", partial(_attributes, "list.txt"), lines),
    "published checkpoint": of_file("published.pt", "published", _import_published, some_bytes),
    "published checkpoint that runs code": made("published.pt", _import, hostile_torch),
    "npy latents": of_file("*/*.npy", "extracted", _import_latents, some_bytes),
    "npy latents that run code": of_file("*/*.npy", "extracted", _import_latents, hostile_npy),
    "safetensors latents": of_file("*.safetensors", "shards", _import_latents, some_bytes),
    "latents_stats.pt": of_file("latents_stats.pt", "shards", _import_latents, some_bytes),
    "latents_stats.pt that runs code": of_file("latents_stats.pt", "shards", _import_latents, hostile_torch),
}  # fmt: skip
