"""The whole system on scikit-learn's digits: trains a VAE, then the paper's FPDM, a looped FPDM and a DiT for equal
time, samples with equal budgets of block passes, scores, and writes results/quickstart/report.md. The same command
resumes an interrupted run."""

import logging
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import fpdm
from fpdm import cli
from fpdm.chain import run_script
from fpdm.chain.equal_time import steps_for_equal_time
from fpdm.chain.folder import study_folder
from fpdm.config import ExperimentConfig, check_range, limits
from fpdm.cost import ForwardCost
from fpdm.devices import process_state
from fpdm.evaluation.comparison import ScoreBook
from fpdm.evaluation.figures import Curve, Smoothing, plot_overview, plot_smoothing
from fpdm.evaluation.metrics import memorisation, score_name
from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.models import block_cost, build_model
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.reproduction.digits import prepare, reference
from fpdm.reproduction.experiments import Reference
from fpdm.reproduction.trainings import config_path, finished_run
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.images import save_grid
from fpdm.sampling.plan import make_plan
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.runlog import latest_run

logger = logging.getLogger("fpdm")
MODELS = {"fpdm": "FPDM", "dit": "DiT", "looped": "FPDM, looped"}  # by config
REUSES = {"fpdm": True, "looped": False}  # what helps each of them
CURVES = {
    ("fpdm", True): "FPDM, solutions reused",
    ("fpdm", False): "FPDM, no reuse",
    ("looped", False): "FPDM, looped",
}
ROUNDS = 2  # of measuring how fast the models train
GRID_COLUMNS = 20  # each digit twice in a row
EQUAL = 1.1  # training times that differ by more are pointed out


@dataclass
class Settings:
    """Duration and sizes of the quickstart, and its output folder.

    Args:
        out: folder for all files.
        seconds: training time of each of the three models, on this machine.
        vae_steps: training steps of the VAE.
        images: number of sampled images for each score.
        iterations: iterations per timestep of the points on the curves; the looped model has those that it was trained
            with.
        budget: block passes per image for the curve, and the small budget of the grids.
        large_budget: the large budget of the grids.
        batch_size: images per sampling batch.
        seed: seed for training the models and for sampling; the VAE's seed is fixed.
    """

    out: str = "results/quickstart"
    seconds: float = 60
    vae_steps: int = 800
    images: int = 1000
    iterations: tuple[int, ...] = (1, 2, 4, 10)
    budget: int = 60
    large_budget: int = 240
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        check_range(1, limits.SECONDS, seconds=self.seconds)
        check_range(1, limits.STEPS, vae_steps=self.vae_steps)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        check_range(65, limits.SAMPLES, images=self.images)  # the features have 64 dimensions
        check_range(1, limits.ITERATIONS, iterations=self.iterations)
        check_range(1, limits.PASSES, budget=self.budget, large_budget=self.large_budget)
        check_range(0, limits.SEED, seed=self.seed)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    started = time.perf_counter()
    out = Path(settings.out)
    check_plans(settings)
    with study_folder(out, {name: getattr(settings, name) for name in ("seed", "seconds", "vae_steps")}):
        prepare(out, settings.vae_steps)
        arguments = {name: train_arguments(name, settings, out) for name in MODELS}
        steps = steps_for_equal_time(out / "steps.json", settings.seconds, arguments, rounds=ROUNDS)
        logger.info(
            f"\n{settings.seconds:g} s of training here: "
            f"{', '.join(f'{steps[name]} steps of {label}' for name, label in MODELS.items())}"
        )
        device = process_state().device
        models = {name: load_trained(train(name, steps[name], settings, out), device) for name in MODELS}
        compare(settings, out, models)
    logger.info(f"quickstart: {time.perf_counter() - started:.0f} s; report in {out / 'report.md'}")


def check_plans(settings: Settings) -> None:
    """ValueError for budgets that are too small for one timestep, before minutes of training."""
    for name in MODELS:
        for budget in (settings.budget, settings.large_budget):
            for iterations in tried(name, settings):
                make_plan(model_cost(name), budget=budget, iterations=iterations)


def tried(name: str, settings: Settings) -> list[int | None]:
    """The iterations per timestep of a model on its curve. A looped model has those that it was trained with: others
    are much worse."""
    if not model_cost(name).iterative:
        return [None]
    most = model_config(name).sjfb.grad if name == "looped" else max(settings.iterations)
    found = [k for k in settings.iterations if k <= most]
    if not found:
        raise ValueError(f"iterations={settings.iterations}: {MODELS[name]} has at most {most}; add a smaller number")
    return found


def model_config(name: str) -> ExperimentConfig:
    return cli.parse(
        ExperimentConfig, cli.make_parser(ExperimentConfig, ""), ["--config", str(config_path("digits", name))]
    )


def model_cost(name: str) -> ForwardCost:
    """The cost of one call of a config's model."""
    model = model_config(name).model
    with torch.device("meta"):
        return block_cost(build_model(model.name, **model.overrides()))


def train_arguments(name: str, settings: Settings, out: Path) -> list:
    return ["--config", config_path("digits", name), "--data.latents", out / "latents", "--run.results", out / "runs",
            "--run.name", name, "--run.seed", settings.seed]  # fmt: skip


def train(name: str, steps: int, settings: Settings, out: Path) -> Path:
    """The run's folder. The model is trained now, unless an earlier quickstart did it."""
    found = finished_run(out / "runs", name, steps)
    if found is not None:
        return found
    run_script(
        "train.py",
        *train_arguments(name, settings, out),
        "--optim.steps",
        steps,
        "--resume",
        "auto",
    )
    return latest_run(str(out / "runs"), name)


def compare(settings: Settings, out: Path, models: dict[str, Trained]) -> None:
    """Sample, score, plot, and write the report."""
    real = reference(out / "features")
    device = process_state().device
    predicted = real.classifier.logits(real.held_out_images.to(device)).argmax(1).cpu()
    book = ScoreBook(out / "scores.json", real.classifier, real.key, real.features, settings.images,
                     settings.batch_size, real.held_out)  # fmt: skip

    small = SamplingConfig(budget=settings.budget, seed=settings.seed)
    large = replace(small, budget=settings.large_budget)
    points = {
        (name, reuse): {
            k: book.score(models[name].contender, replace(small, iterations=k, reuse=reuse)).distance
            for k in tried(name, settings)
        }
        for name, reuse in CURVES
    }
    ways = {name: {"iterations": min(found, key=found.get), "reuse": reuse} for (name, reuse), found in points.items()
            if reuse == REUSES[name]}  # fmt: skip
    rows = []
    for config in (small, replace(small, sampler="ab2"), large):
        for name in MODELS:
            chosen = replace(config, **ways.get(name, {}))
            rows.append((name, chosen, book.score(models[name].contender, chosen)))
    smoothing = Smoothing(
        curves=[Curve(label, list(points[key]), list(points[key].values())) for key, label in CURVES.items()],
        baseline=next(score.distance for name, _, score in rows if name == "dit"),
        held_out=real.held_out_score,
        held_out_name=f"{len(real.held_out)} held-out digits",
        score=score_name("cnn", settings.images),
        title=f"{settings.budget} block passes per image, DDIM",
    )
    plot_smoothing(smoothing, out / "smoothing.png")
    strips = sample_strips(models, [(name, config) for name, config, _ in rows if config.sampler == small.sampler])
    plot_overview([(label, images) for label, _, images in strips], GRID_COLUMNS, smoothing, out / "overview.png")
    for _, file, strip in strips:
        save_grid(strip, out / file, GRID_COLUMNS)
    accuracy = (predicted == real.held_out_labels).float().mean().item()
    report = write_report(settings, out, models, rows, smoothing, real, accuracy)
    logger.info("\n" + report)


def sample_strips(models: dict[str, Trained], choices: list[tuple[str, SamplingConfig]]) -> list[tuple]:
    """Samples from the same noise and labels for each choice, as (label, file name, images)."""
    strips = []
    for name, config in choices:
        config = replace(config, classes=list(range(10)))
        plan = plan_for(models[name].contender.source, config)
        with torch.inference_mode():
            images = sample_images(models[name].contender.source, config, plan, range(2 * GRID_COLUMNS)).cpu()
        each = f", {config.iterations} it. each" if config.iterations else ""
        label = f"{MODELS[name]}, {config.budget} block passes ({len(plan.steps)} timesteps{each})"
        strips.append((label, f"{name}-{config.budget}-block-passes.png", images))
    return strips


def write_report(
    settings: Settings, out: Path, models: dict[str, Trained], rows: list[tuple], smoothing: Smoothing,
    real: Reference, accuracy: float,
) -> str:  # fmt: skip
    """Write report.md; returns the part of it that is shown in the terminal."""
    trained = [[MODELS[name], f"{m.parameters:,d}", str(m.steps), f"{m.seconds:.0f} s"] for name, m in models.items()]
    others = memorisation(real.held_out, real.features, real.held_out)
    scored = []
    for name, config, result in rows:
        label = MODELS[name]
        if config.iterations is not None:
            label += f", {config.iterations} it. per timestep" + ", reuse" * bool(config.reuse)
        numbers = [f"{result.gflops:.2f}", f"{result.ms_per_image:.1f}", f"{result.distance:.1f}",
                   f"{result.nearest:.2f}", f"{result.memorised:.1%}"]  # fmt: skip
        scored.append([label, config.sampler.upper(), str(config.budget), str(result.timesteps), *numbers])
    curves = []
    for curve in smoothing.curves:
        found = dict(zip(curve.x, curve.scores, strict=True))
        curves.append([curve.label, *(f"{found[k]:.1f}" if k in found else "" for k in settings.iterations)])
    text = "\n\n".join(
        [
            markdown_table(["model", "parameters", "training steps", "training time"], trained),
            training_times(models),
            markdown_table(["model", "sampler", "budget", "timesteps", "GFLOPs/image", "ms/image", smoothing.score,
                            "nearest", "memorised"], scored, 2),
            markdown_table(
                [f"{settings.budget} block passes, DDIM", *(f"{k} it." for k in settings.iterations)], curves
            ),
            f"Held-out digits, of which no model has seen any: {score_name('cnn', len(real.held_out))} "
            f"{smoothing.held_out:.1f}, nearest {others.nearest_held_out:.2f}, memorised {others.memorised:.1%}.",
        ]
    )  # fmt: skip
    write_atomically(
        out / "report.md",
        "# FPDM and DiT on handwritten digits\n\n"
        "FPDM is the paper's, with one block in the implicit layer. FPDM, looped, has three, and no other blocks. "
        "All models have the same data, batch size, learning rate and training time, and are sampled from the same "
        f"noise and labels. {smoothing.score} is the Fréchet distance between {settings.images} samples and the "
        f"{len(real.features):,d} training digits in the features of a classifier trained on them (accuracy on the "
        f"{len(real.held_out)} held-out digits: {accuracy:.1%}). It is comparable only with scores computed in the "
        "same way, of as many images: it is larger for fewer. Nearest is the median distance to the nearest training "
        "digit in these features; memorised is the share of samples as near to one as only 1 % of the held-out digits "
        "are. In the first table, a model has the number of iterations per timestep that is best on its curve.\n\n"
        f"![samples, and score against iterations](overview.png)\n\n{text}\n\n"
        f"One training seed ({settings.seed}). fpdm {fpdm.__version__}, torch {torch.__version__}, "
        f"{process_state().device}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"Python {platform.python_version()}. Command: `bash scripts/quickstart.sh`.\n",
    )
    return text


def training_times(models: dict[str, Trained]) -> str:
    """Whether the trainings really took equally long."""
    took = ", ".join(f"{MODELS[name]} {m.seconds:.0f} s" for name, m in models.items())
    seconds = [m.seconds for m in models.values()]
    if max(seconds) <= EQUAL * min(seconds):
        return f"The trainings took equally long ({took})."
    return f"The training times differ by more than a tenth ({took}): other programs slowed the machine down."


if __name__ == "__main__":
    cli.run(main)
