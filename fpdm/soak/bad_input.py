"""Bad input: files mutated field by field and byte by byte, hostile archives and pickles, command lines and settings.

A command refuses it in one line that begins with `error: `, with exit status 2 and nothing written; or the change does
no harm, and the command succeeds.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from fpdm.soak import images, mutations, settings
from fpdm.soak.children import HUNG, command, run
from fpdm.soak.outcome import Lost, Round
from fpdm.soak.works import FPDM, STEPS, TINY, Material

MEMORY = 2 * 2**30  # bytes that a command may map beyond what its libraries have mapped
SECONDS = 120
# The last three are of a run, which is none before its first checkpoint.
UNFINISHED = re.compile(r"\.partial$|^encoding\.json$|^config\.yaml$|^log\.jsonl$|^log\.txt$")
CANARY = "pwned"  # what a pickle that runs would leave


class Case(NamedTuple):
    """words: of the command. out: what it would write. did: what was changed."""

    words: list
    out: Path
    did: str


Kind = Callable[[Material, Random, Path], Case]


def play(material: Material, draw: Random, folder: Path) -> Round:
    """One case of one kind."""
    name = draw.choice(list(KINDS))
    case = KINDS[name](material, draw, folder)
    before = listing(case.out)
    ended = run(command(case.words), folder.with_suffix(".txt"), SECONDS, memory=MEMORY)
    did = {"kind": name, "did": case.did}
    if (folder / CANARY).exists():
        raise Lost(f"{name}, {case.did}: a pickle was run")
    if HUNG in ended.statuses:
        raise Lost(f"{name}, {case.did}: hangs: {ended.said[-1000:]}")
    if "Traceback" in ended.said or ended.statuses[0] not in (0, 2):
        raise Lost(f"{name}, {case.did}: {ended.statuses} {ended.said[-2500:]}")
    if ended.well:
        return Round(name, "harmless", did)
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        raise Lost(f"{name}, {case.did}: {len(lines)} lines: {ended.said[-1500:]}")
    if listing(case.out) != before:
        raise Lost(f"{name}, {case.did}: refused, and yet it wrote {sorted(listing(case.out) - before)[:3]}")
    return Round(name, "refused in one line", did)


def listing(out: Path) -> set[str]:
    """The files of a folder that were written there, by name and size, without those that say of themselves that they
    are not finished: an image may turn out to be broken after others have been encoded."""
    whole = [path for path in out.rglob("*") if path.is_file() and not UNFINISHED.search(path.name)]
    return {f"{path.relative_to(out)} {path.stat().st_size}" for path in whole}


def _sample(runs: Path, material: Material, folder: Path) -> list:
    return ["sample", "--ckpt", runs / "000-run", "--steps", 1, "--iterations", 1, "--num-samples", 1, "--out",
            folder / "out"]  # fmt: skip


def _train(store: Path, material: Material, folder: Path) -> list:
    return ["train", "--data.latents", store, "--run.results", folder / "out", "--run.preview_every", 0,
            "--model.name", "FPDM-XS/4", "--model.hidden_size", 32, "--model.num_heads", 2, "--optim.batch_size", 4,
            "--optim.steps", 1, "--optim.warmup", 0]  # fmt: skip


def _resume(runs: Path, material: Material, folder: Path) -> list:
    """The command that made the material's run, a step longer."""
    words = ["train", "--data.latents", material.store, "--run.results", runs, *FPDM, *TINY]
    return [*words, "--optim.steps", STEPS + 1]


def _encode(images: Path, material: Material, folder: Path) -> list:
    return ["encode_latents", "--images", images, "--vae", "pixels", "--resolution", 8, "--out", folder / "out"]


def _encode_with(vae: Path, material: Material, folder: Path) -> list:
    return ["encode_latents", "--images", material.images, "--vae", vae, "--resolution", 16, "--out", folder / "out"]


def _finish_store(store: Path, material: Material, folder: Path) -> list:
    return [*_encode_with(material.vae, material, folder)[:-1], store]


def _more(samples: Path, material: Material, folder: Path) -> list:
    """The command that made the material's samples, for more of them."""
    return ["sample", "--ckpt", material.run, "--out", samples, "--budget", 8, "--iterations", 1, "--num-samples", 10]


def _score(samples: Path, material: Material, folder: Path) -> list:
    return ["evaluate", "--samples", samples, "--reference", material.images, "--features", "classifier",
            "--classifier", material.classifier, "--cache", folder / "cache", "--out",
            folder / "out" / "score.json"]  # fmt: skip


def _score_npz(samples: Path, material: Material, folder: Path) -> list:
    return _score(samples / "samples.npz", material, folder)


def _score_with(classifier: Path, material: Material, folder: Path) -> list:
    words = _score(material.samples, material, folder)
    return [*words[: words.index("--classifier") + 1], classifier, *words[words.index("--cache") :]]


def _import(path: Path, material: Material, folder: Path) -> list:
    return ["import_checkpoint", "--source", path, "--out", folder / "out"]


Words = Callable[[Path, Material, Path], list]


def _of_file(path_in: str, source: str, words: Words, way: Callable[[Path, Random], str]) -> Kind:
    """Cases in which one file of a copy is changed. path_in: below the copied folder `source` of the material."""

    def kind(material: Material, draw: Random, folder: Path) -> Case:
        copied = folder / source
        shutil.copytree(getattr(material, source), copied, symlinks=True)
        path = draw.choice(sorted(copied.glob(path_in)))
        did = way(path, draw)
        return Case(words(copied, material, folder), folder / "out", f"{path.relative_to(copied)}: {did}")

    return kind


def _hostile(make: Callable[[Path, Random], str], name: str, words: Words) -> Kind:
    """Cases in which a file is made from nothing."""

    def kind(material: Material, draw: Random, folder: Path) -> Case:
        path = folder / name
        did = make(path, draw)
        return Case(words(path, material, folder), folder / "out", did)

    return kind


def _image(path: Path, material: Material, folder: Path) -> list:
    return _encode(path.parent, material, folder)


def _command_line(material: Material, draw: Random, folder: Path) -> Case:
    words = settings.drawn_words(draw, folder / "out")
    return Case(words, folder / "out", " ".join(map(str, words)))


def _yaml(material: Material, draw: Random, folder: Path) -> Case:
    path = folder / "config.yaml"
    did = settings.drawn_yaml(path, draw)
    words = [*_train(material.store, material, folder), "--config", path, "--run.results", folder / "out", "--dry-run"]
    return Case(words, folder / "out", did)


def _journal(path: Path, draw: Random) -> str:
    """The store becomes an unfinished one, whose journal is changed."""
    return mutations.json_field(path.rename(path.with_name("encoding.json")), draw)


FIELD, BYTES = mutations.json_field, mutations.some_bytes
LAST = "000-run/checkpoints/0000008"
KINDS: dict[str, Kind] = {
    "command line": _command_line,
    "YAML": _yaml,
    "manifest.json": _of_file("manifest.json", "store", _train, FIELD),
    "encoding.json": _of_file("manifest.json", "store", _finish_store, _journal),
    "shard": _of_file("shard-*.bin", "store", _train, BYTES),
    "vae/config.json": _of_file("config.json", "vae", _encode_with, FIELD),
    "weights of a VAE": _of_file("*.safetensors", "vae", _encode_with, BYTES),
    "sampling.json": _of_file(f"{LAST}/ema/sampling.json", "runs", _sample, FIELD),
    "config.json of a model": _of_file(f"{LAST}/ema/config.json", "runs", _sample, FIELD),
    "weights of a model": _of_file(f"{LAST}/ema/model.safetensors", "runs", _sample, BYTES),
    "trainer.pt": _of_file(f"{LAST}/trainer.pt", "runs", _resume, BYTES),
    "trainer.pt that runs code": _of_file(f"{LAST}/trainer.pt", "runs", _resume, mutations.hostile_pickle),
    "config.yaml of a run": _of_file("000-run/config.yaml", "runs", _resume, mutations.yaml_field),
    "log.jsonl": _of_file("000-run/log.jsonl", "runs", _resume, BYTES),
    "samples.json": _of_file("samples.json", "samples", _more, FIELD),
    "PNG": _of_file("[0-9]*.png", "samples", _score, BYTES),
    "samples.npz": _of_file("samples.npz", "samples", _score_npz, BYTES),
    "config.json of a classifier": _of_file("config.json", "classifier", _score_with, FIELD),
    "weights of a classifier": _of_file("*.safetensors", "classifier", _score_with, BYTES),
    "image": _hostile(images.odd_image, "images/0.png", _image),
    "zip": _hostile(images.odd_zip, "images.zip", _encode),
    "npz": _hostile(images.odd_npz, "samples.npz", _score),
    "published checkpoint": _hostile(mutations.published, "published.pt", _import),
}
