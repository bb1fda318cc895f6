"""Works that last long: studies, which start other commands."""

import json
import shutil
from pathlib import Path

from fpdm.files import read_json
from fpdm.records import read_object
from fpdm.soak.material import Material
from fpdm.soak.results import run_intact, run_result
from fpdm.soak.work import Work

LIMIT = 1800  # seconds: each of their commands imports the libraries anew


def reproduction() -> Work:
    """A figure of the digits; how long its models are trained is given, because it is measured otherwise."""

    def words(material: Material, folder: Path) -> list:
        _given(folder / "out" / "steps" / "fpdm.json", {"fpdm": 4})
        _given(folder / "out" / "steps" / "dit.json", {"fpdm": 4, "dit": 2})
        return ["reproduce", "--out", folder / "out", "--seconds", 0.2, "--seeds", 1, "--samples", 65, "--vae-steps", 6,
                "--targets", "fig5", "--train",
                "--model.num_heads 2 --optim.batch_size 8 --run.log_every 1 --run.preview_every 0"]  # fmt: skip

    def result(folder: Path) -> dict:
        return run_result(folder / "out") | {"section": (folder / "out" / "fig5.md").read_text()}

    return Work(words, result, study_intact, limit=LIMIT, family=True)


def quickstart() -> Work:
    """With few steps, which are given for the same reason."""

    def words(material: Material, folder: Path) -> list:
        _given(folder / "out" / "steps.json", {"fpdm": 9, "dit": 5})
        return ["quickstart", "--out", folder / "out", "--seconds", 1, "--vae-steps", 4, "--images", 70, "--iterations",
                "[1,2]", "--budget", 24, "--large-budget", 36]  # fmt: skip

    return Work(words, scores_result, study_intact, limit=LIMIT, family=True)


def sampling_study() -> Work:
    def words(material: Material, folder: Path) -> list:
        return material.study_words(folder / "out")

    return Work(words, scores_result, study_intact, limit=LIMIT)


def benchmark() -> Work:
    """Costs of updates and of memory; the cases are the same, their seconds are not."""

    def words(material: Material, folder: Path) -> list:
        return ["benchmark", "--out", folder / "out", "--questions", "updates,memory", "--size", "XS",
                "--patch", 2, "--latent", "3,8,8", "--batch-size", 2, "--memory-batch-size", 4, "--updates", 2,
                "--sizes", "XS", "--batch-sizes", "1,2", "--modes", "eager",
                "--repeats", 2, "--steps", 2, "--vae", "pixels"]  # fmt: skip

    def intact(folder: Path) -> None:
        for path in (folder / "out").glob("*.json"):
            read_json(path)

    def result(folder: Path) -> dict:
        kept = {path.name: read_json(path) for path in sorted((folder / "out").glob("*.json"))}
        rows = {name: [sorted(row) for row in kept[name]] for name in kept if isinstance(kept[name], list)}
        return {"rows": rows, "files": sorted(path.name for path in (folder / "out").iterdir())}

    return Work(words, result, intact, limit=LIMIT)


def scores_result(folder: Path) -> dict:
    """The scores without their seconds, and whether there is a report."""
    scores = read_object(folder / "out" / "scores.json")
    untimed = {name: [*score[:4], *score[5:]] for name, score in scores.items()}
    return {"scores": untimed, "report": (folder / "out" / "report.md").exists()}


def study_intact(folder: Path) -> None:
    if (folder / "out" / "scores.json").exists():
        read_object(folder / "out" / "scores.json")
    run_intact(folder / "out")


def _given(path: Path, steps: dict) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.given")
        partial.write_text(json.dumps(steps))
        shutil.move(partial, path)
