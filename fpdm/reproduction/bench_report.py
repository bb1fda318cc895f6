"""The sections of the report on natural images: the yardstick, the trials, and what the scores say."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from fpdm.data.codec import PIXELS
from fpdm.evaluation.figures import Series, plot_series, plot_strips
from fpdm.evaluation.metrics import frechet_distance, kernel_distance, memorisation, precision_recall, statistics
from fpdm.evaluation.samples import load_labelled
from fpdm.evaluation.scores import score
from fpdm.evaluation.seeds import difference, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.files import read_json, write_atomically
from fpdm.records import fits, shown
from fpdm.reproduction.bench import RESOLUTION, SAMPLERS, Bench
from fpdm.reproduction.bench_asset import asset
from fpdm.reproduction.bench_core import core
from fpdm.reproduction.bench_speed import key, milliseconds
from fpdm.reproduction.bench_spread import spread_of_latents
from fpdm.reproduction.contest import THIRDS, TRIED, validations
from fpdm.reproduction.experiments import Section, step_flops
from fpdm.reproduction.ladder import with_iterations
from fpdm.reproduction.rates import said
from fpdm.reproduction.scoring import gathered
from fpdm.sampling.allocation import spread_evenly
from fpdm.sampling.generate import sample

KEPT = 5_000  # images for KID, precision and recall
TIMESTEPS = (5, 10, 20)
SHOWN = 1.5  # times the best score: what is above it would flatten the plots
WAYS_TO_ALLOCATE = (
    {"allocation": "decreasing", "ratio": 3}, {"allocation": "increasing", "ratio": 3},
    {"allocation": "adaptive", "tolerance": 0.1},
)  # fmt: skip


def yardstick(bench: Bench) -> Section:
    """Real images, damaged more and more: the scores must rank them."""
    facts = bench.features.extractor.facts
    images, labels, _ = load_labelled(f"{bench.images}@held-out", RESOLUTION)
    training, _, _ = load_labelled(f"{bench.images}@training", RESOLUTION)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    kinds = {"held-out images, as they are": images}
    if bench.subject.vae != PIXELS:  # no model in its latents can do better
        kinds["decoded from their latents"] = bench.reconstructed(images)
    for sigma in (0.5, 0.75, 1.0):
        kinds[f"blurred, sigma {sigma:g} pixels"] = transforms.gaussian_blur(images, [9, 9], [sigma, sigma])
    for level in (5, 10, 20):
        kinds[f"noise of {level} levels of 255"] = (images + level * noise).round().clamp(0, 255).byte()
    for missing in (1, 3, 5):
        kinds[f"{missing} of 10 classes missing"] = images[labels >= missing]
    order = torch.randperm(len(training), generator=generator)
    for count in (5000, 500, 50):
        chosen = order[torch.arange(len(images)) % count]
        kinds[f"copies of {count} training images"] = training[chosen]
    rows = []
    for label, pictures in kinds.items():
        found = bench.extract(pictures)
        rows.append([label, f"{len(found):,d}", *numbers(bench, found)])
    head = ["images", "number", f"FD-{facts.name}", "KID x 1000", "precision", "recall", "nearest", "memorised"]
    accuracy = ", ".join(f"{share:.1%} at {size} pixels" for size, share in facts.accuracy.items())
    held_out = memorisation(bench.held_out.kept, bench.training.kept, bench.held_out.kept).nearest_held_out
    text = (
        f"The classifier `{facts.name}` gets {accuracy} of the held-out images right (weights {bench.classifier_key}). "
        f"All are compared with the {bench.training.pool.count:,d} training images. The floor is the first row. "
        f"Nearest: median distance to the nearest training image, in features; {held_out:.2f} for held-out images. "
        "Memorised: share of images as near as the nearest 1 % of the held-out images."
    )
    return Section("The yardstick", f"{text}\n\n{markdown_table(head, rows)}")


def trials(bench: Bench) -> Section:
    """Updates in training (Tab. 4 and 5) and learning rates, each in a short training."""
    contest, steps = bench.contest, bench.contest.steps()
    rows = [[trial.name.removeprefix("trial-fpdm-").rsplit("-", 1)[0], str(trial.steps), said(trial.loss, ".4f")]
            for trial in contest.variant_trials("fpdm")]  # fmt: skip
    variants = markdown_table(["FPDM, updates in training", "steps", "held-out loss"], rows)
    tried = contest.rate_trials(bench.subject.entrants)
    every = sorted({trial.rate for found in tried.values() for trial in found})
    rows = []
    for name, found in tried.items():
        losses = {trial.rate: said(trial.loss, ".4f") for trial in found}
        rows.append([bench.subject.entrants[name].label, *(losses.get(rate, "") for rate in every),
                     f"{contest.rate(name):g}"])  # fmt: skip
    rates = markdown_table(["", *(f"rate {rate:g}" for rate in every), "chosen"], rows)
    rows = [[name, str(count)] for name, count in steps.items()]
    lengths = markdown_table(["", f"steps in {contest.seconds:g} s"], rows)
    caption = (
        f"Trainings of {contest.trial_seconds:g} s, cooled down over the last fifth; one seed. The loss on held-out "
        f"images; of an FPDM the lowest over the iterations {TRIED}."
    )
    return Section("Trials", f"{caption}\n\n{variants}\n\n{rates}\n\n{lengths}")


def convergence(bench: Bench) -> Section:
    """Scores of the first seed at a third, two thirds and the whole of the training, at some numbers of timesteps."""
    for third in THIRDS:
        bench.fill([(name, {"steps": t, "sampler": "ab2", **way}) for name in bench.subject.entrants
                    for way in bench.ways(name) for t in TIMESTEPS], third, 1)  # fmt: skip
    rows = []
    for name, entrant in bench.subject.entrants.items():
        for way in bench.ways(name):
            for third in THIRDS:
                cells = [spread(bench.distances(name, third, 1, steps=t, sampler="ab2", **way)) for t in TIMESTEPS]
                rows.append([entrant.label + with_iterations(way), f"{third}/3", *cells])
    table = markdown_table(["", "training", *(f"{t} timesteps" for t in TIMESTEPS)], rows, 2)
    gains = []
    for name, entrant in bench.subject.entrants.items():
        before, after = (
            min(bench.distances(name, third, 1, steps=t, sampler="ab2", **way).mean()
                for way in bench.ways(name) for t in TIMESTEPS) for third in (2, 3)
        )  # fmt: skip
        gains.append([entrant.label, f"{before:.2f}", f"{after:.2f}", f"{1 - after / before:.0%}"])
    gain = markdown_table(["best of all timesteps", "at 2/3", "at the end", "improvement"], gains)
    return Section("Convergence", f"{bench.score_name}, `ab2`.\n\n{table}\n\n{gain}")


def quality(bench: Bench) -> Section:
    """Each entrant with the best solver at each budget, over GFLOPs and milliseconds per image."""
    choices = [(name, way) for name in bench.subject.entrants for way in bench.ways(name)]
    *tried, largest = bench.subject.budgets
    bench.fill([(name, {"budget": budget, "sampler": s, **way}) for name, way in choices for budget in tried
                for s in SAMPLERS], seeds=1)  # fmt: skip
    bench.fill([(name, {"budget": budget, "sampler": best_solver(bench, name, way, budget), **way})
                for name, way in choices for budget in bench.subject.budgets])  # fmt: skip
    rows, points = [], {}
    times = milliseconds(bench, [(name, way, budget) for name, way in choices for budget in bench.subject.budgets])
    for name, way in choices:
        label = bench.subject.entrants[name].label + with_iterations(way)
        points[label, name != "fpdm"] = here = []
        for budget in bench.subject.budgets:
            best = best_solver(bench, name, way, budget)
            found = bench.score(name, budget=budget, sampler=best, **way)
            first = [f"{bench.distances(name, seeds=1, budget=budget, sampler=s, **way)[0]:.2f}" if budget != largest
                     else "" for s in SAMPLERS]  # fmt: skip
            distances = np.array([score.distance for score in found])
            took = times[key(name, way, budget)]
            here.append((found[0].gflops, took, float(distances.mean())))
            rows.append([label, str(budget), str(found[0].timesteps), best, *first, spread(distances),
                         f"{found[0].gflops:.3f}", f"{took:.1f}",
                         f"{np.mean([score.memorised for score in found]):.3f}"])  # fmt: skip
    limit = SHOWN * min(point[2] for found in points.values() for point in found)
    for i, (quantity, picture) in enumerate((("GFLOPs", "quality.png"), ("milliseconds", "quality-seconds.png"))):
        series = []
        for (label, explicit), found in points.items():
            shown = [point for point in found if point[2] <= limit]
            series.append(Series(label, [point[i] for point in shown], [point[2] for point in shown], explicit))
        plot_series(series, f"{quantity} per image", bench.score_name, bench.out / picture)
    head = ["", "block passes", "timesteps", "best solver", *SAMPLERS, bench.score_name, "GFLOPs/image", "ms/image",
            "memorised"]  # fmt: skip
    text = (
        f"The solvers are compared on the first seed; at {largest} block passes, the one that is best at {tried[-1]}. "
        f"The plots leave out scores above {limit:.0f}. Times are those of a batch of {bench.batch_size} on all cores, "
        "with nothing else at the same time."
    )
    pictures = (
        "![score over GFLOPs per image](quality.png)\n\n![score over milliseconds per image](quality-seconds.png)"
    )
    return Section("Quality over compute", f"{pictures}\n\n{text}\n\n{markdown_table(head, rows, 1)}")


def best_solver(bench: Bench, name: str, way: dict, budget: int) -> str:
    """Of the first seed at this budget; at the largest one, of which a score takes longest, that of the one before."""
    *tried, largest = bench.subject.budgets
    compared = tried[-1] if budget == largest else budget
    scores = {s: bench.distances(name, seeds=1, budget=compared, sampler=s, **way)[0] for s in SAMPLERS}
    return min(scores, key=scores.get)


def training(bench: Bench) -> Section:
    """The runs' own validations over training seconds, with the cooled-down ends of the forks."""
    curves, rows = [], []
    for name, entrant in bench.subject.entrants.items():
        for seed, run in enumerate(bench.runs(name)):
            trained, lines = bench.trained(run), validations(run)
            seconds = [line["step"] / trained.steps * bench.contest.seconds for line in lines]
            curves.append(Series(f"{entrant.label}, seed {seed}", seconds, [line["val_fd"] for line in lines],
                                 name != "fpdm"))  # fmt: skip
            ends = [validations(bench.contest.run(name, seed, third))[-1] for third in THIRDS]
            losses = [f"{end['val_loss']:.4f}" for end in ends]
            rows.append([entrant.label, str(seed), f"{trained.parameters:,d}", f"{trained.steps:,d}",
                         f"{trained.seconds:.0f}", f"{trained.steps * step_flops(trained) / 1e15:.2f}",
                         *(f"{end['val_fd']:.2f}" for end in ends), *losses])  # fmt: skip
    plot_series(curves, "seconds of training", "FD of 1,000 samples while training", bench.out / "training.png")
    head = ["", "seed", "parameters", "steps", "seconds measured", "training PFLOPs",
            *(f"FD at {third}/3" for third in THIRDS), *(f"loss at {third}/3" for third in THIRDS)]  # fmt: skip
    picture = "![validation over seconds of training](training.png)"
    return Section("Quality over training time", f"{picture}\n\n{markdown_table(head, rows)}")


def claims(bench: Bench) -> Section:
    """Smoothing and reuse at a fixed budget, with DDIM as in the paper and with ab2; allocation with DDIM."""
    parts, budget, counts = [], bench.subject.middle, (1, 2, 3, 4, 6, 10)
    for sampler in ("ddim", "ab2"):
        wanted = {"budget": budget, "sampler": sampler}
        bench.fill([("fpdm", {**wanted, "iterations": k, "reuse": reuse}) for k in counts for reuse in (True, False)])
        rows = []
        for reuse, label in ((True, "reuse"), (False, "no reuse")):
            cells = [bench.distances("fpdm", **wanted, iterations=k, reuse=reuse) for k in counts]
            rows.append([f"FPDM, {label}", *map(spread, cells)])
        for name in ("dit-12", "dit-3"):
            found = bench.distances(name, **wanted)
            rows.append([bench.subject.entrants[name].label, spread(found), *[""] * (len(counts) - 1)])
        parts.append(markdown_table([f"{budget} block passes, {sampler}", *(f"{k} it." for k in counts)], rows))
    cost = bench.trained(bench.runs("fpdm")[0]).contender.source.cost
    rows = []
    for k in (2, 4):
        calls = budget // cost.blocks(k)
        for way in WAYS_TO_ALLOCATE:
            found = bench.score("fpdm", budget=budget, iterations=k, reuse=True, **way)
            distances = np.array([score.distance for score in found])
            passes = float(np.mean([score.block_passes for score in found]))
            equal = spread_evenly(round(cost.updates(passes, calls)), calls)
            constant = bench.distances("fpdm", counts=equal, reuse=True)
            rows.append([f"{k} it. on average, {', '.join(map(str, way.values()))}", f"{passes:.1f}", spread(distances),
                         spread(constant), " ".join(difference(distances, constant))])  # fmt: skip
    head = ["FPDM, reuse, ddim", "block passes", bench.score_name, "constant, as many passes", "difference"]
    return Section("Smoothing, reuse, allocation", "\n\n".join([*parts, markdown_table(head, rows)]))


def final(bench: Bench) -> Section:
    """All metrics of each entrant with its best solver, at the middle and the large budget."""
    rows = []
    for budget in (bench.subject.middle, bench.subject.budgets[-1]):
        for name, entrant in bench.subject.entrants.items():
            options = [{"budget": budget, "sampler": best_solver(bench, name, way, budget), **way}
                       for way in bench.ways(name)]  # fmt: skip
            best = min(options, key=lambda settings: bench.distances(name, **settings).mean())
            for seed, run in enumerate(bench.runs(name)):
                values = kept(bench, run, {**best, "seed": seed})
                rows.append(
                    [entrant.label, str(seed), str(budget), f"{best['sampler']}{with_iterations(best)}", *values]
                )
    values = numbers(bench, bench.held_out.kept, deviation=True)
    rows.append(["real, held out", "", "", "", *values])
    head = ["", "seed", "block passes", "solver", bench.score_name, "KID x 1000", "precision", "recall", "nearest",
            "memorised"]  # fmt: skip
    return Section("All metrics", markdown_table(head, rows, 1))


def grids(bench: Bench) -> Section:
    """Samples of all entrants from the same noise and labels, at two budgets."""
    strips = []
    real, _, _ = load_labelled(f"{bench.images}@held-out", RESOLUTION)
    strips.append(("real, held out", enlarged(real[:: len(real) // 20][:20])))
    for budget in (bench.subject.budgets[1], bench.subject.budgets[-1]):
        for name, entrant in bench.subject.entrants.items():
            way = min(bench.ways(name), key=lambda way: bench.distances(
                name, budget=budget, sampler=best_solver(bench, name, way, budget), **way).mean())  # fmt: skip
            source = bench.trained(bench.runs(name)[0]).contender.source
            images = sample(source, 20, budget=budget, sampler="ab2", classes=list(range(10)), **way)
            strips.append((f"{entrant.label}{with_iterations(way)}, {budget} block passes", enlarged(images)))
    plot_strips(strips, 20, bench.out / "grids.png")
    return Section("Samples", "The same noise and labels in every strip, `ab2`, seed 0.\n\n![samples](grids.png)")


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "yardstick": yardstick, "trials": trials, "convergence": convergence, "quality": quality, "training": training,
    "claims": claims, "spread": spread_of_latents, "final": final, "grids": grids, "core": core, "asset": asset,
}  # fmt: skip


def numbers(bench: Bench, features: Tensor, deviation: bool = False) -> list[str]:
    """FD, KID, precision, recall, nearest distance and memorised share of features (N, F), as text."""
    reference = bench.training
    some = reference.kept[:: max(len(reference.kept) // KEPT, 1)][:KEPT]
    distance = f"{frechet_distance(statistics(features), reference.pool):.2f}"
    if deviation:
        found = score(gathered(features), reference._replace(kept=None), bench.features.extractor.name, resamples=50)
        distance += f" ± {next(value for name, value in found.items() if name.endswith('_std')):.2f}"
    precision, recall = precision_recall(features, some)
    near = memorisation(features, reference.kept, bench.held_out.kept)
    return [distance, f"{1000 * kernel_distance(features, some)[0]:.2f}", f"{precision:.3f}", f"{recall:.3f}",
            f"{near.nearest:.2f}", f"{near.memorised:.3f}"]  # fmt: skip


def kept(bench: Bench, run: Path, settings: dict) -> list[str]:
    """`numbers` of a run's samples, computed once and kept in a file."""
    folder = bench.out / "final"
    folder.mkdir(exist_ok=True)
    name = f"{run.name}-{settings['budget']}-{settings['sampler']}-{settings.get('iterations', 0)}-{bench.samples}"
    path = folder / f"{name}.json"
    if not path.exists():
        source = bench.trained(run).contender.source
        images = sample(source, bench.samples, bench.batch_size, **settings)
        write_atomically(path, json.dumps(numbers(bench, bench.extract(images), deviation=True)))
    found = read_json(path)
    if not fits(found, list[str]):
        raise ValueError(f"{path}: {shown(found)}: expected a list of numbers as texts; remove it, and run again")
    return found


def enlarged(images: Tensor) -> Tensor:
    """uint8 images, each pixel as a square of 3 x 3."""
    return F.interpolate(images.float(), scale_factor=3, mode="nearest").byte()
