"""Compare ways of sampling on checkpoints of several training seeds: initial values and acceleration of solves,
solvers, allocation. Writes its tables to report.md. The same command resumes an interrupted run."""

import logging
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import fpdm
from fpdm import cli
from fpdm.chain.folder import study_folder
from fpdm.config import check_choice, check_range, limits
from fpdm.data.codec import Codec
from fpdm.devices import allow_tf32, process_state
from fpdm.evaluation.comparison import Contender, ScoreBook
from fpdm.evaluation.convergence import solve_residuals
from fpdm.evaluation.features import cached_classifier
from fpdm.evaluation.metrics import noise_floor, score_name
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.seeds import difference, over_seeds, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.reproduction.contenders import load_contender
from fpdm.sampling.allocation import spread_evenly
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import SOLVERS

logger = logging.getLogger("fpdm")
PARTS = ("solves", "solvers", "allocation")
TRACED = 64  # number of images for the residuals
# Name -> settings. All are compared with the first, the paper's.
STARTS = {
    "reuse": {},
    "no reuse": {"reuse": False},
    "damped reuse, weight 0.8": {"reuse_weight": 0.8},
    "damped reuse, weight 0.5": {"reuse_weight": 0.5},
    "extrapolation 0.5": {"extrapolation": 0.5},
    "extrapolation 1": {"extrapolation": 1.0},
}
ACCELERATED = {  # only with at least three iterations
    **{f"reuse, Anderson({memory})": {"anderson": memory} for memory in (1, 2, 3, 5)},
    "no reuse, Anderson(1)": {"reuse": False, "anderson": 1},
    "extrapolation 0.5, Anderson(1)": {"extrapolation": 0.5, "anderson": 1},
}
TOLERANCES = (0.2, 0.1, 0.05)


@dataclass
class Settings:
    """What is compared, and with which data.

    Args:
        ckpt: checkpoints that differ only in the training seed: of an FPDM and, for `solvers`, also of a DiT.
        reference: the real images in class folders: a folder, a zip, digits or digits@training.
        out: folder for the report.
        parts: solves, solvers, allocation.
        images: number of sampled images for each score.
        budget: block passes per image.
        budgets: block passes per image in the table of solvers.
        iterations: iterations per timestep, with one table of solves for each.
        batch_size: images per sampling batch.
    """

    ckpt: list[str] = field(default_factory=list)
    reference: str = "digits@training"
    out: str = "results/study-sampling"
    parts: tuple[str, ...] = PARTS
    images: int = 1000
    budget: int = 60
    budgets: tuple[int, ...] = (30, 60, 120)
    iterations: tuple[int, ...] = (1, 2, 3, 4)
    batch_size: int = 250

    def __post_init__(self):
        check_range(65, limits.SAMPLES, images=self.images)  # the features have 64 dimensions
        check_range(1, limits.PASSES, budget=self.budget, budgets=self.budgets)
        check_range(1, limits.ITERATIONS, iterations=self.iterations)
        check_range(1, limits.BATCH, batch_size=self.batch_size)
        if not self.ckpt:
            raise ValueError("ckpt is not set; give checkpoints as a list, as in --ckpt runs/000-a,runs/001-b")
        for part in self.parts:
            check_choice("parts", part, PARTS)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    out = Path(settings.out)
    allow_tf32(True)  # as sample.py does
    models = [load_contender(path, process_state().device) for path in settings.ckpt]
    fpdms, dits = ([c for c in models if c.source.iterative is kind] for kind in (True, False))
    if not fpdms:
        raise ValueError(f"ckpt={settings.ckpt}: at least one must be of an FPDM")
    decisive = {"reference": settings.reference, "weights": [c.key for c in models], "images": settings.images}
    with study_folder(out, decisive):
        report = study(settings, out, fpdms, dits)
        write_atomically(out / "report.md", report)
    logger.info(f"\n{report}\n-> {out / 'report.md'}")


def study(settings: Settings, out: Path, fpdms: list[Contender], dits: list[Contender]) -> str:
    """The report: all tables of the chosen parts."""
    codec: Codec = fpdms[0].source.codec
    pixels = [length * codec.downsampling for length in fpdms[0].source.latent_shape[1:]]
    images, labels, classes = load_labelled(settings.reference, pixels)
    classifier, key = cached_classifier(images, labels, classes, out / "features")
    reference = torch.cat([classifier(batch) for batch in images.split(256)])
    classifier.to(process_state().device)
    book = ScoreBook(out / "scores.json", classifier, key, reference, settings.images, settings.batch_size)

    name = score_name("cnn", settings.images)
    sections = []
    if "solves" in settings.parts:
        sections += [solves_table(settings, book, fpdms, k, name) for k in settings.iterations]
    if "solvers" in settings.parts:
        sections.append(solvers_table(settings, book, fpdms, dits, name))
    if "allocation" in settings.parts:
        sections += [allocation_table(settings, book, fpdms, k, name) for k in (2, 4)]
    seeds = f"{len(fpdms)} FPDM" + (f" and {len(dits)} DiT" if dits else "")
    head = (
        f"# Ways of sampling\n\n{seeds} training seeds; model i is sampled with seed i. Scores are mean ± standard "
        f"deviation over the seeds. {name}: lower is better; noise floor {noise_floor(reference):.1f}. Differences are "
        'relative to the first row, for the same seeds. "Better" and "worse" mean that the mean difference is larger '
        "than its standard deviation.\n"
    )
    foot = (
        f"fpdm {fpdm.__version__}, torch {torch.__version__}, {process_state().device}, {platform.machine()}, "
        f"Python {platform.python_version()}.\n"
    )
    return "\n\n".join([head, *sections, foot])


def solves_table(settings: Settings, book: ScoreBook, models: list[Contender], iterations: int, name: str) -> str:
    """Initial and final residuals of solves, and the score, at a number of iterations per timestep."""
    rows, baseline = [], None
    for label, ways in (STARTS | (ACCELERATED if iterations > 2 else {})).items():
        config = SamplingConfig(budget=settings.budget, iterations=iterations, **ways)
        result = over_seeds(book, models, config).distances
        residuals = [
            solve_residuals(model.source, replace(config, seed=seed), range(TRACED))
            for seed, model in enumerate(models)
        ]
        # The first solve always starts from the pre blocks' output.
        starts, ends = (np.median([values[:, 1:] for values in kind]) for kind in zip(*residuals, strict=True))
        compared = ["", ""] if baseline is None else difference(result, baseline)
        baseline = result if baseline is None else baseline
        rows.append([label, f"{starts:.3f}", f"{ends:.3f}", spread(result), *compared])
    timesteps = settings.budget // models[0].source.cost.blocks(iterations)
    head = [f"{timesteps} timesteps, {iterations} it.", "initial residual", "final residual", name, "difference", ""]
    return markdown_table(head, rows)


def solvers_table(settings: Settings, book: ScoreBook, fpdms: list[Contender], dits: list[Contender], name: str) -> str:
    """Every solver at every budget; FPDM with 1 and 2 iterations per model call."""
    groups = [(f"FPDM, {k} it.", fpdms, {"iterations": k}) for k in (1, 2)] + [("DiT", dits, {})]
    rows = []
    for label, models, extra in groups:
        for sampler in SOLVERS if models else ():
            cells = []
            for budget in settings.budgets:
                config = SamplingConfig(budget=budget, sampler=sampler, **extra)
                cells.append(spread(over_seeds(book, models, config).distances))
            rows.append([label, sampler, *cells])
    return markdown_table([name, "sampler", *(f"{budget} passes" for budget in settings.budgets)], rows, 2)


def allocation_table(settings: Settings, book: ScoreBook, models: list[Contender], iterations: int, name: str) -> str:
    """Each allocation compared with a constant plan with the same timesteps and the same number of updates."""
    rows = []
    config = SamplingConfig(budget=settings.budget, iterations=iterations)
    constant = over_seeds(book, models, config)
    rows.append(
        ["constant", f"{constant.block_passes:.1f}", f"{constant.gflops:.2f}", spread(constant.distances), "", ""]
    )
    calls, cost = constant.scores[0].timesteps, models[0].source.cost
    ways = {f"{way}, ratio 3": {"allocation": way} for way in ("decreasing", "increasing")} | {
        f"adaptive, tolerance {tolerance:g}": {"allocation": "adaptive", "tolerance": tolerance}
        for tolerance in TOLERANCES
    }
    for label, way in ways.items():
        result = over_seeds(book, models, replace(config, **way))
        updates = [round(cost.updates(score.block_passes, calls)) for score in result.scores]
        equal = over_seeds(
            book, models, lambda seed, u=updates: SamplingConfig(counts=spread_evenly(u[seed], calls), seed=seed)
        )
        rows.append([label, f"{result.block_passes:.1f}", f"{result.gflops:.2f}", spread(result.distances),
                     *difference(result.distances, equal.distances)])  # fmt: skip
    head = [f"{calls} timesteps, {iterations} it. on average", "block passes", "GFLOPs", name,
            "difference from constant", ""]  # fmt: skip
    return markdown_table(head, rows)


if __name__ == "__main__":
    cli.run(main)
