"""The whole system on scikit-learn's digits: VAE, FPDM and DiT trained for equal time, sampled at equal
budgets of block passes, scored, and compared in results/quickstart/report.md. Started again, it goes on
where it stopped."""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

import fpdm
from fpdm import cli
from fpdm.config import SamplingConfig, check_at_least
from fpdm.evaluation.features import cached_classifier
from fpdm.evaluation.figures import Curve, Smoothing, plot_overview, plot_smoothing
from fpdm.evaluation.metrics import frechet_distance, noise_floor, score_name, statistics
from fpdm.evaluation.samples import load_labelled
from fpdm.models import forward_cost
from fpdm.pipeline import load_checkpoint, open_source
from fpdm.sampling.generate import Source, draw_images, plan_for
from fpdm.sampling.images import save_grid
from fpdm.sampling.plan import describe

logger = logging.getLogger("fpdm")
ROOT = Path(__file__).resolve().parents[1]
MODELS = ("fpdm", "dit")
RESOLUTION = 32
GRID_COLUMNS = 20  # each digit twice in a row


@dataclass
class Settings:
    """How long the quickstart takes and where it writes.

    Args:
        out: folder of everything it makes.
        seconds: training time of each of the two models, on this machine.
        vae_steps: training steps of the VAE.
        images: images drawn for each score.
        iterations: iterations per timestep that the curve is drawn over.
        budget: block passes per image of the curve, and the small budget of the grids.
        large_budget: the large budget of the grids.
        batch_size: images drawn at a time.
        seed: of training and sampling.
    """

    out: str = "results/quickstart"
    seconds: float = 100
    vae_steps: int = 800
    images: int = 1000
    iterations: tuple[int, ...] = (1, 2, 3, 4, 6, 10)
    budget: int = 60
    large_budget: int = 240
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        check_at_least(1, seconds=self.seconds, vae_steps=self.vae_steps, batch_size=self.batch_size)
        check_at_least(65, images=self.images)  # the features have 64 dimensions


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    started = time.perf_counter()
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    vae, latents = out / "vae", out / "latents"
    if not (vae / "config.json").exists():
        run("train_vae.py", "--images", "digits", "--resolution", RESOLUTION, "--widths", "[16,32,32]",
            "--steps", settings.vae_steps, "--batch-size", 16, "--lr", "3e-3", "--kl-weight", "1e-3",
            "--out", vae)  # fmt: skip
    if not (latents / "manifest.json").exists():
        run("encode_latents.py", "--images", "digits", "--resolution", RESOLUTION, "--vae", vae,
            "--mirror", "false", "--out", latents)  # fmt: skip
    steps = steps_for_equal_time(settings, out)
    runs = {name: train(name, steps[name], settings, out) for name in MODELS}

    sources, costs, facts = {}, {}, {}
    for name in MODELS:
        model, sampling_facts, checkpoint = load_checkpoint(runs[name])
        sources[name] = open_source(model, sampling_facts)
        costs[name] = forward_cost(model)
        facts[name] = training_facts(model, checkpoint)
    compare(settings, out, sources, costs, facts)
    logger.info(f"quickstart: {time.perf_counter() - started:.0f} s; report in {out / 'report.md'}")


def run(script: str, *arguments) -> None:
    """Run one of the scripts, showing the command as a user would type it."""
    words = ["python", f"scripts/{script}", *map(str, arguments)]
    logger.info(f"\n$ {shlex.join(words)}")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    status = subprocess.run([sys.executable, str(ROOT / "scripts" / script), *words[2:]], env=environment).returncode
    if status:
        raise ValueError(f"scripts/{script} failed with exit status {status}; its message is above")


def config_path(name: str) -> Path:
    return ROOT / "configs" / "digits" / f"{name}.yaml"


def train_arguments(name: str, settings: Settings, out: Path) -> list:
    return ["--config", config_path(name), "--data.latents", out / "latents", "--run.results", out / "runs",
            "--run.name", name, "--run.seed", settings.seed]  # fmt: skip


def steps_for_equal_time(settings: Settings, out: Path) -> dict[str, int]:
    """Training steps of each model that take `seconds` here: timed once, then kept for a resumed quickstart.

    The learning rate is a function of the step, so the number of steps must be known beforehand.
    """
    path = out / "steps.json"
    if not path.exists():
        trial = 30
        steps = {}
        for name in MODELS:
            with tempfile.TemporaryDirectory() as folder:
                run("train.py", *train_arguments(name, settings, out), "--run.results", folder,
                    "--optim.steps", 2 * trial, "--run.log_every", trial)  # fmt: skip
                last = json.loads(next(Path(folder).glob("*/log.jsonl")).read_text().splitlines()[-1])
            batch = yaml.safe_load(config_path(name).read_text())["optim"]["batch_size"]
            steps[name] = max(int(settings.seconds * last["images_per_s"] / batch), 1)
        path.write_text(json.dumps(steps))
    steps = json.loads(path.read_text())
    logger.info(f"\n{settings.seconds:g} s of training are {steps['fpdm']} steps of FPDM, {steps['dit']} of DiT here")
    return steps


def train(name: str, steps: int, settings: Settings, out: Path) -> Path:
    """The run's folder, trained now unless an earlier quickstart did."""
    found = sorted((out / "runs").glob(f"*-{name}/checkpoints/latest"))
    if found and int(found[-1].resolve().name) == steps:
        return found[-1].parent.parent
    run(
        "train.py",
        *train_arguments(name, settings, out),
        "--optim.steps",
        steps,
        *(["--resume", "latest"] if found else []),
    )
    return sorted((out / "runs").glob(f"*-{name}"))[-1]


def training_facts(model, checkpoint: Path) -> dict:
    lines = [json.loads(line) for line in (checkpoint.parent.parent / "log.jsonl").read_text().splitlines()]
    config = yaml.safe_load((checkpoint.parent.parent / "config.yaml").read_text())
    images = config["optim"]["steps"] * config["optim"]["batch_size"]
    rate = sum(line["images_per_s"] for line in lines) / len(lines)
    return {
        "name": config["model"]["name"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config["optim"]["steps"],
        "seconds": images / rate,
        "loss": lines[-1]["loss"],
    }


def compare(settings: Settings, out: Path, sources: dict[str, Source], costs: dict, facts: dict) -> None:
    """Draw, score, plot, and write the report."""
    device = torch.device("cpu")
    images, labels, classes = load_labelled("digits", RESOLUTION)
    classifier, key = cached_classifier(images, labels, classes, out / "features", device)
    reference = torch.cat([classifier(batch) for batch in images.split(256)])
    accuracy = (
        (torch.cat([classifier.logits(batch) for batch in images.split(256)]).argmax(1) == labels).float().mean().item()
    )
    floor, expected = noise_floor(reference), statistics(reference)
    scores = Scores(settings, out / "scores.json", sources, costs, classifier, expected, key)

    small = SamplingConfig(budget=settings.budget, seed=settings.seed)
    large = replace(small, budget=settings.large_budget)
    curve = [replace(small, iterations=k, reuse=reuse) for reuse in (True, False) for k in settings.iterations]
    points = {(c.iterations, c.reuse): scores.of("fpdm", c) for c in curve}
    best = min(settings.iterations, key=lambda k: points[k, True]["score"])
    ours, ours_large = (replace(config, iterations=best, reuse=True) for config in (small, large))
    table = [
        ("dit", small),
        ("fpdm", ours),
        ("dit", replace(small, sampler="ddpm")),
        ("fpdm", replace(ours, sampler="ddpm")),
        ("dit", large),
        ("fpdm", ours_large),
    ]
    rows = [(name, config, scores.of(name, config)) for name, config in table]

    curves = [
        Curve(label, list(settings.iterations), [points[k, reuse]["score"] for k in settings.iterations])
        for label, reuse in (("FPDM, solutions reused", True), ("FPDM, no reuse", False))
    ]
    score = score_name("cnn", settings.images)
    title = f"{settings.budget} block passes per image, DDIM"
    smoothing = Smoothing(curves, rows[0][2]["score"], floor, score, title)
    plot_smoothing(smoothing, out / "smoothing.png")
    strips = draw_strips(settings, sources, small, large, best)
    plot_overview(strips, GRID_COLUMNS, smoothing, out / "overview.png")
    for label, strip in strips:
        name = label.split(" (")[0].lower().replace(", ", "-").replace(" ", "-")
        save_grid(strip, out / f"{name}.png", GRID_COLUMNS)
    report = write_report(settings, out, rows, curves, facts, floor, accuracy, score, best)
    logger.info("\n" + report)


class Scores:
    """Scores by (model, sampling config), each computed once and kept in a file."""

    def __init__(self, settings, path: Path, sources, costs, classifier, reference, key: str):
        self.settings, self.path, self.sources, self.costs = settings, path, sources, costs
        self.classifier, self.reference, self.key = classifier, reference, key
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, config: SamplingConfig) -> dict:
        key = json.dumps([name, vars(config), self.settings.images, self.key])
        if key not in self.known:
            self.known[key] = self._compute(name, config)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.known, indent=1))
            os.replace(partial, self.path)
        return self.known[key]

    @torch.inference_mode()
    def _compute(self, name: str, config: SamplingConfig) -> dict:
        source, count = self.sources[name], self.settings.images
        plan = plan_for(source, config)
        flops = sum(self.costs[name].flops(step.iterations) for step in plan.steps)
        how = f"{config.sampler}{', reuse' if source.iterative and config.reuse is not False else ''}"
        logger.info(f"{name}, {how}: {describe(plan, flops)}")
        features, started = [], time.perf_counter()
        with tqdm(total=count, desc=f"sample {name}", unit="image", leave=False) as progress:
            for first in range(0, count, self.settings.batch_size):
                indices = range(first, min(first + self.settings.batch_size, count))
                features.append(self.classifier(draw_images(source, config, plan, indices)))
                progress.update(len(indices))
        return {
            "score": frechet_distance(statistics(torch.cat(features)), self.reference),
            "timesteps": len(plan.steps),
            "block_passes": plan.block_passes,
            "gflops": flops / 1e9,
            "ms_per_image": 1000 * (time.perf_counter() - started) / count,
        }


def draw_strips(settings: Settings, sources: dict[str, Source], small, large, best: int) -> list[tuple]:
    """The same noise and labels through both models at both budgets, as (label, images)."""
    strips = []
    for config in (small, large):
        for name in MODELS[::-1]:
            spent = replace(config, classes=list(range(10)), iterations=best if name == "fpdm" else None)
            plan = plan_for(sources[name], spent)
            with torch.inference_mode():
                images = draw_images(sources[name], spent, plan, range(2 * GRID_COLUMNS))
            title = {"fpdm": f"FPDM, {config.budget} block passes ({len(plan.steps)} timesteps of {best} iterations)",
                     "dit": f"DiT, {config.budget} block passes ({len(plan.steps)} timesteps)"}[name]  # fmt: skip
            strips.append((title, images))
    return strips


def write_report(settings, out, rows, curves, facts, floor, accuracy, score, best) -> str:
    """report.md; returns the part of it that is worth seeing in a terminal."""
    terminal = [
        "| model | parameters | training steps | training time |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {f['name']} | {f['parameters']:,d} | {f['steps']} | {f['seconds']:.0f} s |" for f in facts.values()),
        "",
        f"| model | sampler | budget | timesteps | GFLOPs/image | ms/image | {score} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, config, result in rows:
        label = f"FPDM ({best} iterations, reuse)" if name == "fpdm" else "DiT"
        terminal.append(
            f"| {label} | {config.sampler.upper()} | {config.budget} | {result['timesteps']} | {result['gflops']:.2f} "
            f"| {result['ms_per_image']:.1f} | {result['score']:.1f} |"
        )
    terminal += [
        "",
        f"| {settings.budget} block passes, DDIM | " + " | ".join(f"{k} it." for k in settings.iterations) + " |",
        "| --- |" + " ---: |" * len(settings.iterations),
        *(f"| {c.label} | " + " | ".join(f"{s:.1f}" for s in c.scores) + " |" for c in curves),
        "",
        f"Noise floor (two halves of the real digits): {floor:.1f}",
    ]
    text = "\n".join(terminal)
    (out / "report.md").write_text(
        "# FPDM and DiT on handwritten digits\n\n"
        "Same data, batch size, learning rate and training time; the same noise and labels at sampling. "
        f"{score} is the Fréchet distance of {settings.images} samples to the 1,797 real digits in the features of a "
        f"classifier trained on them (accuracy {accuracy:.1%}); it compares only with scores made the same way.\n\n"
        f"![samples, and score over iterations](overview.png)\n\n{text}\n\n"
        f"One training seed ({settings.seed}). fpdm {fpdm.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, Python {platform.python_version()}. "
        f"Command: `bash scripts/quickstart.sh`.\n"
    )
    return text


if __name__ == "__main__":
    cli.run(main)
