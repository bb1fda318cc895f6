"""The paper's tables and figures. Each has one function, which returns a section of the report.

Our scores are for digits, the paper's for ImageNet. The tables show both; compare their order, not their size. The
budgets are 5, 10 and 20 timesteps of DiT, as in the paper's Tab. 1.
"""

from collections.abc import Callable

import torch

from fpdm.config import SJFBConfig
from fpdm.evaluation import metrics
from fpdm.evaluation.figures import (
    Curve,
    Point,
    Smoothing,
    plot_curves,
    plot_points,
    plot_smoothing,
    plot_strips,
)
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import difference, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.experiments import Laboratory, Section, step_flops
from fpdm.reproduction.ladder_asset import asset
from fpdm.reproduction.ladder_report import ladder
from fpdm.reproduction.longer import longer
from fpdm.reproduction.recipes import recipes
from fpdm.reproduction.starts import starts
from fpdm.sampling.allocation import spread_evenly
from fpdm.sampling.generate import plan_for, sample, sample_images
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.trace import Recorder, plot_residuals
from fpdm.training.sjfb import mean_iterations
from fpdm.training.step_memory import step_memory

BUDGETS = (60, 120, 240)
MIDDLE = BUDGETS[1]
ITERATIONS = (1, 2, 3, 4, 6, 10, 18)
USUAL = 2  # iterations per timestep where the paper's tables use the best number
CLASSES = list(range(10))
WAYS_TO_ALLOCATE = ({"allocation": "decreasing"}, {"allocation": "increasing"},
               {"allocation": "adaptive", "tolerance": 0.1}, {"allocation": "adaptive", "tolerance": 0.05})  # fmt: skip
PAPER_TAB1 = {  # (sampler, budget) -> FID of DiT and FPDM, at 140, 280, 560 block passes
    ("ddpm", 0): (148.0, 85.8), ("ddpm", 1): (80.9, 43.3), ("ddpm", 2): (37.9, 26.1),
    ("ddim", 0): (110.0, 33.9), ("ddim", 1): (35.2, 22.4), ("ddim", 2): (16.5, 19.6),
}  # fmt: skip
PAPER_TAB4 = {3: 43.0, 6: 43.2, 12: 61.5, 24: 567.6}
PAPER_TAB5 = {("jfb", 6): 567.6, ("multi-step", 6): 48.2, ("stochastic", 6): 43.2,
              ("jfb", 12): 567.6, ("multi-step", 12): 79.9, ("stochastic", 12): 61.5}  # fmt: skip


def table1(lab: Laboratory) -> Section:
    """DiT and FPDM at three budgets with both samplers, for equal training time and for equal training FLOPs."""
    rows = []
    ways = [("DiT", "dit", {})] + [(f"FPDM, {k} it.", "fpdm", {"iterations": k}) for k in (1, 2, 4)]
    ways.append((f"FPDM, equal training FLOPs, {USUAL} it.", "fpdm-equal-flops", {"iterations": USUAL}))
    for sampler in ("ddpm", "ddim"):
        for label, name, settings in ways:
            cells = []
            for position, budget in enumerate(BUDGETS):
                result = lab.score(name, budget=budget, sampler=sampler, **settings)
                paper = PAPER_TAB1[sampler, position][0 if name == "dit" else 1]
                beside = f" ({paper})" if name in ("dit", "fpdm") and settings in ({}, {"iterations": USUAL}) else ""
                cells.append(f"{spread(result.distances)}{beside}")
            rows.append([label, sampler.upper(), *cells])
    scores = markdown_table(["model", "sampler", *(f"{b} passes" for b in BUDGETS)], rows, 2)
    costs = []
    for label, name, settings in (ways[0], ways[2], ways[4]):
        first, *_ = trained = lab.models(name)
        m, n = (first.config["sjfb"]["grad"], first.config["sjfb"]["no_grad"]) if settings else (0, 0)
        sizes = {"iterations": m, "iterations_no_grad": n} if settings else {}
        memory = step_memory(first.model, first.config["optim"]["batch_size"], False, False, **sizes)
        result = lab.score(name, budget=MIDDLE, **settings)
        seconds = sum(t.seconds for t in trained) / len(trained)
        costs.append([label, f"{first.parameters:,d}", f"{memory.activations / 2**20:.1f}",
                      f"{(memory.weights + memory.gradients + memory.optimizer) / 2**20:.1f}", str(first.steps),
                      f"{seconds:.0f}", f"{first.steps * step_flops(first) / 1e12:,.0f}", f"{result.gflops:.2f}",
                      f"{result.ms_per_image:.1f}"])  # fmt: skip
    head = ["model", "parameters", "saved for backward, MiB", "weights, gradients, optimizer, MiB", "steps",
            "training, s", "training, TFLOPs", f"GFLOPs/image at {MIDDLE}", "ms/image"]  # fmt: skip
    caption = "The paper's FID at 140, 280 and 560 block passes is in brackets."
    return Section("Tab. 1: quality at three budgets", f"{caption}\n\n{scores}\n\n{markdown_table(head, costs)}")


def table3(lab: Laboratory) -> Section:
    """DiTs with about as many parameters as FPDM, trained for equal time, and for as many steps as the full DiT."""
    kinds = [("FPDM", "fpdm", {"iterations": USUAL}, 31.5), ("DiT with 3 blocks", "dit-3-blocks", {}, 350.6),
             ("DiT with 12 narrow blocks", "dit-narrow", {}, 55.9)]  # fmt: skip
    ways = [*kinds, ("DiT", "dit", {}, None)]
    ways += [(f"{label}, as many steps", f"{name}-equal-steps", how, None) for label, name, how, _ in kinds]
    # As many FLOPs as the full DiT spends on the middle budget: narrow or shallow networks get more timesteps.
    allowed = lab.score("dit", budget=MIDDLE).gflops
    rows = []
    for label, name, settings, paper in ways:
        first = lab.models(name)[0]
        each = first.contender.source.cost.total_flops([settings.get("iterations", 0)]) / 1e9
        result = lab.score(name, steps=max(2, round(allowed / each)), **settings)
        sizes = [f"{first.parameters:,d}", str(first.steps), str(result.scores[0].timesteps), f"{result.gflops:.2f}"]
        rows.append([label, *sizes, spread(result.distances), "" if paper is None else str(paper)])
    head = ["model", "parameters", "steps", "timesteps", "GFLOPs/image", _name(lab), "paper, FID"]
    caption = (
        f"DDIM, FPDM with {USUAL} iterations per timestep. Each network has the number of timesteps that costs about "
        f"as many FLOPs as {MIDDLE} block passes of the DiT with 12 blocks."
    )
    return Section("Tab. 3: DiTs with as many parameters", f"{caption}\n\n{markdown_table(head, rows)}")


def table4(lab: Laboratory) -> Section:
    """Upper bounds M = N of the updates in training, for equal training time."""
    return Section("Tab. 4: updates in training", _training_variants(
        lab, [(f"M = N = {k}", f"stochastic-{k}", PAPER_TAB4[k]) for k in PAPER_TAB4]))  # fmt: skip


def table5(lab: Laboratory) -> Section:
    """JFB, multi-step and stochastic, for equal training time; JFB also for as many steps as stochastic."""
    ways = [(f"{variant}, {k}", f"{variant}-{k}", paper) for (variant, k), paper in PAPER_TAB5.items()]
    ways += [(f"jfb, {k}, as many steps as stochastic", f"jfb-{k}-equal-steps", "") for k in (6, 12)]
    return Section("Tab. 5: how the implicit layer is trained", _training_variants(lab, ways))


def figure4(lab: Laboratory) -> Section:
    """Score against iterations per timestep at a fixed budget; increasing, decreasing and adaptive allocation."""
    constant = [lab.score("fpdm", budget=MIDDLE, iterations=k) for k in ITERATIONS]
    results, explicit_model = [r.distances for r in constant], lab.score("dit", budget=MIDDLE)
    dit = explicit_model.distances
    curve = Curve("FPDM", list(ITERATIONS), [float(r.mean()) for r in results], [_deviation(r) for r in results])
    plot_smoothing(_smoothing(lab, [curve], float(dit.mean())), lab.out / "fig4.png")
    rows = [["DiT", f"{explicit_model.block_passes:.1f}", spread(dit), ""]]
    for k, r in zip(ITERATIONS, constant, strict=True):
        against = " ".join(difference(r.distances, dit))
        rows.append([f"FPDM, {k} it.", f"{r.block_passes:.1f}", spread(r.distances), f"{against} against DiT"])
    cost = lab.models("fpdm")[0].contender.source.cost
    for k in (2, 4):
        calls = MIDDLE // cost.blocks(k)
        for way in WAYS_TO_ALLOCATE:
            result = lab.score("fpdm", budget=MIDDLE, iterations=k, **way)
            updates = round(cost.updates(result.block_passes, calls))
            equal = lab.score("fpdm", counts=spread_evenly(updates, calls)).distances
            label = f"FPDM, {k} it. on average, {', '.join(map(str, way.values()))}"
            rows.append([label, f"{result.block_passes:.1f}", spread(result.distances),
                         f"{' '.join(difference(result.distances, equal))} against constant"])  # fmt: skip
    table = markdown_table(["", "block passes", _name(lab), "difference"], rows)
    return Section(
        "Fig. 3 and 4: smoothing and allocation", f"![score against iterations per timestep](fig4.png)\n\n{table}"
    )


def figure5(lab: Laboratory) -> Section:
    """Samples from the same noise and labels at different iterations per timestep."""
    strips = []
    for k in ITERATIONS:
        source = lab.models("fpdm")[0].contender.source
        images = sample(source, 20, budget=MIDDLE, iterations=k, classes=CLASSES)
        strips.append((f"FPDM, {k} it. on {MIDDLE // source.cost.blocks(k)} timesteps", images))
    source = lab.models("dit")[0].contender.source
    images = sample(source, 20, budget=MIDDLE, classes=CLASSES)
    strips.append((f"DiT, {MIDDLE // source.cost.blocks(None)} timesteps", images))
    plot_strips(strips, 20, lab.out / "fig5.png")
    picture = "![samples at different iterations per timestep](fig5.png)"
    return Section("Fig. 5: the same seeds at different iterations", picture)


def figure6(lab: Laboratory) -> Section:
    """Reuse: scores, and residuals against timestep and iteration."""
    rows, curves = [], []
    for label, reuse in (("reuse", True), ("no reuse", False)):
        results = [lab.score("fpdm", budget=MIDDLE, iterations=k, reuse=reuse).distances for k in ITERATIONS]
        rows.append([label, *map(spread, results)])
        means, deviations = [float(r.mean()) for r in results], [_deviation(r) for r in results]
        curves.append(Curve(f"FPDM, {label}", list(ITERATIONS), means, deviations))
        source = lab.models("fpdm")[0].contender.source
        config = SamplingConfig(steps=10, iterations=12, reuse=reuse)
        plan, recorder = plan_for(source, config), Recorder()
        with torch.inference_mode():
            sample_images(source, config, plan, range(64), recorder, with_residuals=True)
        trace = recorder.trace(plan)
        plot_residuals(trace.timesteps, trace.residuals, lab.out / f"fig6-{label.replace(' ', '-')}.png")
    dit = float(lab.score("dit", budget=MIDDLE).distances.mean())
    plot_smoothing(_smoothing(lab, curves, dit), lab.out / "fig6a.png")
    pictures = "![score with and without reuse](fig6a.png)\n\nResiduals with reuse (first) and without reuse " \
               "(second):\n\n![residuals with reuse](fig6-reuse.png)\n\n" \
               "![residuals without reuse](fig6-no-reuse.png)"  # fmt: skip
    table = markdown_table([_name(lab), *(f"{k} it." for k in ITERATIONS)], rows)
    return Section("Fig. 6: reuse", f"{pictures}\n\n{table}")


def figure7(lab: Laboratory) -> Section:
    """Scores against budgets with 0, 1, 2 and 4 explicit blocks before and after the implicit layer, equal time."""
    rows, curves, wide = [], [], (30, *BUDGETS)
    for blocks, name in ((0, "explicit-0"), (1, "fpdm"), (2, "explicit-2"), (4, "explicit-4")):
        # As many timesteps with two updates as fit in the budget: more explicit blocks leave fewer timesteps.
        results = [lab.score(name, budget=budget, iterations=USUAL).distances for budget in wide]
        rows.append([f"{blocks} + {blocks}", *map(spread, results)])
        means, deviations = [float(r.mean()) for r in results], [_deviation(r) for r in results]
        curves.append(Curve(f"{blocks} pre and post blocks", list(wide), means, deviations))
    plot_curves(curves, "block passes per image", _name(lab), lab.out / "fig7.png")
    table = markdown_table(["pre + post blocks", *(f"{budget} passes" for budget in wide)], rows)
    caption = f"DDIM, {USUAL} iterations per timestep."
    return Section("Fig. 7: explicit blocks", f"{caption}\n\n![score against budget](fig7.png)\n\n{table}")


def opponents(lab: Laboratory) -> Section:
    """Beyond the paper: second-order solvers for both families."""
    rows = []
    ways = [(f"FPDM, {k} it.", "fpdm", {"iterations": k}) for k in (1, 2)] + [("DiT", "dit", {})]
    for label, name, settings in ways:
        for sampler in ("ddim", "ab2", "dpm++"):
            cells = [spread(lab.score(name, budget=b, sampler=sampler, **settings).distances) for b in BUDGETS]
            rows.append([label, sampler, *cells])
    table = markdown_table(["model", "sampler", *(f"{b} passes" for b in BUDGETS)], rows, 2)
    return Section("Beyond the paper: better solvers for both", table)


def weighting(lab: Laboratory) -> Section:
    """Plain error of v compared with the published program's p2 weighting, which is 0 at the last timestep."""
    rows = []
    for budget in BUDGETS:
        ours, theirs = (lab.score(name, budget=budget, iterations=USUAL).distances for name in ("fpdm", "p2"))
        rows.append([f"{budget} passes", spread(ours), spread(theirs), *difference(theirs, ours)])
    table = markdown_table([_name(lab), "v", "p2", "difference", ""], rows)
    return Section("Beyond the paper: loss weighting", table)


def memorisation(lab: Laboratory) -> Section:
    """Distances of samples to their nearest training digits, compared with those of held-out digits: in features for
    every experiment, in pixels for two, with pictures."""
    held_out = metrics.memorisation(lab.real.held_out, lab.real.features, lab.real.held_out)
    near = [["held-out digits", "", f"{held_out.nearest_held_out:.2f}", f"{held_out.memorised:.1%}"]]
    for name in lab.data.experiments:
        models = lab.models(name)
        implicit = models[0].contender.source.iterative
        result = lab.score(name, budget=MIDDLE, **({"iterations": USUAL} if implicit else {}))
        near.append([name, str(models[0].steps), spread(result.nearest), f"{result.memorised.mean():.1%}"])
    head = [f"in features, {MIDDLE} passes", "steps", "median distance to the nearest training digit", "memorised"]
    features = markdown_table(head, near)

    real = lab.real.images.float().flatten(1) / 255
    gaps = torch.cdist(lab.real.held_out_images.float().flatten(1) / 255, real).min(1).values
    rows, strips = [["held-out digits", f"{gaps.median():.2f}", f"{gaps.min():.2f}"]], []
    for label, name, settings in (("FPDM", "fpdm", {"iterations": USUAL}), ("DiT", "dit", {})):
        images = sample(lab.models(name)[0].contender.source, 200, budget=BUDGETS[-1], **settings)
        near = torch.cdist(images.float().flatten(1) / 255, real).min(1)
        rows.append([label, f"{near.values.median():.2f}", f"{near.values.min():.2f}"])
        closest = near.values.argsort()[:20]
        strips += [(f"{label}: the 20 samples nearest to a training digit", images[closest]),
                   ("the nearest training digits", lab.real.images[near.indices[closest]])]  # fmt: skip
    plot_strips(strips, 20, lab.out / "memorisation.png")
    pixels = markdown_table(["distance in pixels (0 to 1) to the nearest training digit", "median", "minimum"], rows)
    picture = "![samples and their nearest training images](memorisation.png)"
    caption = (
        "Memorised: share of the samples that are as near to a training digit as only 1 % of the held-out digits are; "
        "about 1 % for a model that memorises nothing."
    )
    return Section("Beyond the paper: memorisation", f"{caption}\n\n{features}\n\n{picture}\n\n{pixels}")


def length(lab: Laboratory) -> Section:
    """Score of every experiment against its number of training steps, which differs at equal training time."""
    points = []
    for name in lab.data.experiments:
        models = lab.models(name)
        implicit = models[0].contender.source.iterative
        distances = lab.score(name, budget=MIDDLE, **({"iterations": USUAL} if implicit else {})).distances
        points.append(Point(name, models[0].steps, float(distances.mean()), _deviation(distances), not implicit))
    points.sort(key=lambda point: point.x)
    plot_points(points, "training steps", f"{_name(lab)} at {MIDDLE} passes", lab.out / "length.png")
    rows = [[p.label, "DiT" if p.explicit else "FPDM", f"{p.x}", f"{p.score:.2f} ± {p.deviation:.2f}"] for p in points]
    table = markdown_table(["experiment", "", "steps", _name(lab)], rows, 2)
    picture = "![score against training steps](length.png)"
    return Section("Beyond the paper: how far training got", f"{picture}\n\n{table}")


TARGETS: dict[str, Callable[[Laboratory], Section]] = {
    "tab1": table1, "tab3": table3, "tab4": table4, "tab5": table5, "fig4": figure4, "fig5": figure5, "fig6": figure6,
    "fig7": figure7, "opponents": opponents, "weighting": weighting, "memorisation": memorisation, "length": length,
    "longer": longer, "ladder": ladder, "recipes": recipes, "starts": starts,
    "asset": asset,
}  # fmt: skip


def _smoothing(lab: Laboratory, curves: list[Curve], dit: float) -> Smoothing:
    title = f"{MIDDLE} block passes per image, DDIM, {lab.seeds} training seeds"
    held_out = f"{len(lab.real.held_out)} held-out digits"
    return Smoothing(curves, dit, lab.real.held_out_score, held_out, _name(lab), title)


def _training_variants(lab: Laboratory, ways: list[tuple[str, str, float | str]]) -> str:
    rows = []
    for label, name, paper in ways:
        first = lab.models(name)[0]
        n, m = mean_iterations(SJFBConfig(**first.config["sjfb"]))
        cells = [spread(lab.score(name, budget=MIDDLE, iterations=k).distances) for k in (USUAL, 10)]
        rows.append([label, f"{n + m:g}", str(first.steps), *cells, str(paper)])
    name = _name(lab)
    head = ["", "updates per step", "steps", f"{name}, {USUAL} it.", f"{name}, 10 it.", "paper, FID"]
    return f"{MIDDLE} block passes, DDIM.\n\n{markdown_table(head, rows)}"


def _name(lab: Laboratory) -> str:
    return score_name("cnn", lab.book.images)


def _deviation(values) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
