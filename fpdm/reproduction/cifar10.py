"""CIFAR-10 in pixels, for a GPU: trains FPDM-S/2 and DiT-S/2 for equal time, scores them, and collects the results."""

import shutil
from pathlib import Path

from fpdm.chain import run_script
from fpdm.evaluation.figures import plot_strips
from fpdm.evaluation.metrics import noise_floor, score_name
from fpdm.evaluation.seeds import spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.experiments import Data, Experiment, Laboratory, Section, reference_of
from fpdm.sampling.generate import sample

BUDGETS = (140, 280, 560)  # the paper's; 11, 23 and 46 timesteps of DiT-S/2
ITERATIONS = (2, 4)
SAMPLERS = ("ddim", "ab2")
RESOLUTION = 32
CLASSES = list(range(10))
RELEASE_LIMIT = 60_000_000  # bytes
EXPERIMENTS = {"fpdm": Experiment("fpdm-s-2"), "dit": Experiment("dit-s-2")}


def cifar10(images: str) -> Data:
    """images: the training images in class folders; a folder or a zip."""

    def prepare(out: Path) -> None:
        if not (out / "latents" / "manifest.json").exists():
            run_script("encode_latents.py", "--images", images, "--vae", "pixels", "--resolution", RESOLUTION,
                       "--out", out / "latents")  # fmt: skip

    return Data("cifar10", EXPERIMENTS, prepare, lambda cache: reference_of(images, RESOLUTION, cache))


def scores(lab: Laboratory) -> Section:
    """Both models at three budgets, with DDIM and a second-order solver."""
    ways = [("DiT-S/2", "dit", {})] + [(f"FPDM-S/2, {k} it.", "fpdm", {"iterations": k}) for k in ITERATIONS]
    rows = []
    for label, name, settings in ways:
        for sampler in SAMPLERS:
            results = [lab.score(name, budget=budget, sampler=sampler, **settings) for budget in BUDGETS]
            cells = [f"{spread(r.distances)} ({r.gflops:.0f} GFLOPs, {r.ms_per_image:.1f} ms)" for r in results]
            rows.append([label, sampler, *cells])
    table = markdown_table(["model", "sampler", *(f"{budget} passes" for budget in BUDGETS)], rows, 2)
    trained = [[name, f"{t.parameters:,d}", str(t.steps), f"{t.seconds:.0f}"]
               for name in ("fpdm", "dit") for t in lab.models(name)]  # fmt: skip
    costs = markdown_table(["model", "parameters", "training steps", "training, s"], trained)
    name = score_name("cnn", lab.book.images)
    floor = noise_floor(lab.real.features)
    return Section("Scores", f"{name}, lower is better; noise floor {floor:.2f}.\n\n{table}\n\n{costs}")


def samples(lab: Laboratory) -> Section:
    """Samples of both models from the same noise and labels, and the training curves."""
    strips = []
    for label, name, settings in (("FPDM-S/2, 2 it.", "fpdm", {"iterations": 2}), ("DiT-S/2", "dit", {})):
        for budget in BUDGETS:
            source = lab.models(name)[0].contender.source
            images = sample(source, 40, budget=budget, sampler="ab2", classes=CLASSES, **settings)
            strips.append((f"{label}, {budget} block passes", images))
    plot_strips(strips, 20, lab.out / "samples.png")
    runs = ",".join(str(path.parent) for path in sorted((lab.out / "runs").glob("*-seed0/log.jsonl")))
    run_script("plot_run.py", "--runs", runs, "--x", "hours", "--out", lab.out / "curves.png")
    pictures = "![samples of both models from the same seeds](samples.png)\n\n![loss against training time](curves.png)"
    return Section("Samples and training", pictures)


def release(lab: Laboratory) -> Section:
    """Collect the files to keep in out/release: FPDM's weights in half precision, tables, pictures, logs."""
    folder = lab.out / "release"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = next((lab.out / "runs").glob("*-fpdm-seed0"))
    run_script("export.py", "--ckpt", run, "--out", folder / "fpdm-s-2", "--half")
    for name in ("scores.json", "settings.json", "samples.png", "curves.png", "scores.md", "samples.md"):
        if (lab.out / name).is_file():
            shutil.copy(lab.out / name, folder / name)
    for path in (lab.out / "runs").glob("*/"):
        for name in ("config.yaml", "log.jsonl"):
            shutil.copy(path / name, folder / f"{path.name}-{name}")
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total, largest = sum(sizes.values()), max(sizes.values())
    if total > RELEASE_LIMIT or largest > 15_000_000:
        raise ValueError(
            f"{folder}: {total:,d} bytes in total, {largest:,d} in the largest file; allowed are at most "
            f"{RELEASE_LIMIT:,d} and 15 MB"
        )
    return Section("Release", f"{len(sizes)} files, {total / 1e6:.1f} MB, in release/.")


TARGETS = {"scores": scores, "samples": samples, "release": release}
