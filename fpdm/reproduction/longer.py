"""Beyond the paper: what changes when the digits are trained on for longer.

Each contender has one run per seed with a constant rate. Each length is a fork of it that cools down over its last
fifth, so that the lengths share most of their training. What the paper claims of some FPDMs is tried again in this way.
"""

from fpdm.evaluation.figures import Curve, plot_panels
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import Results, difference, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.contenders import Trained
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.rates import DIVERGED, said
from fpdm.reproduction.trainings import SHARE, Training

CONTENDERS = {"dit": "DiT", "fpdm": "FPDM", "dit-3-blocks": "DiT, 3 blocks", "dit-narrow": "DiT, narrow"}
LENGTHS = (1, 2, 4, 8)  # times the usual training
CLAIMS = {  # FPDMs that were better or worse than the usual one after a short training
    "stochastic-6": "N = M = 6 (Tab. 4)",
    "stochastic-12": "N = M = 12 (Tab. 4)",
    "jfb-6": "JFB, N = 6 (Tab. 5)",
    "explicit-0": "0 + 0 explicit blocks (Fig. 7)",
    "p2": "loss weighting p2",
}
CLAIM_LENGTHS = (1, 4)
TABLE = {"budget": 120, "sampler": "ddim", "iterations": 2}  # how the tables and figures of these score them
RATES = (5e-4, 1e-3, 2e-3)
BUDGETS = (30, 60, 120)
SAMPLERS = ("ab2", "ddim")
ITERATIONS = (1, 2, 4)  # for an FPDM, whose best number counts
TRIAL = {"budget": 120, "sampler": "ab2"}  # by which the rate is chosen
NEAR = {"budget": 60, "sampler": "ab2"}  # by which memorisation is measured


def longer(lab: Laboratory) -> Section:
    """The contenders of the quickstart and of Tab. 3 at several lengths of training, each at its own best rate."""
    names = [*CONTENDERS, *CLAIMS]
    found = lab.equal_time("longer", {name: _arguments(lab, name, 0) for name in names})
    parts = {name: max(found[name] // SHARE, 1) for name in names}  # steps of a fifth of the shortest training
    rates, trials = _best_rates(lab, parts)
    runs = _train(lab, parts, rates, LENGTHS)
    rows, panels = [], {f"{budget} block passes": [] for budget in BUDGETS}
    for name, label in CONTENDERS.items():
        models = {times: lab.trained(runs[name, times]) for times in LENGTHS}
        scores = {}
        for times, trained in models.items():
            seconds = sum(model.seconds for model in trained) / len(trained)
            row = [label, f"{times}", str(trained[0].steps), f"{seconds:.0f}"]
            for sampler in SAMPLERS:
                for budget in BUDGETS:
                    best, k = _best(lab, trained, budget=budget, sampler=sampler)
                    scores[times, sampler, budget] = best.distances
                    row.append(spread(best.distances) + ("" if k is None else f" ({k} it.)"))
            near, _ = _best(lab, trained, **NEAR)
            rows.append([*row, f"{near.memorised.mean():.1%}"])
        for budget, curves in zip(BUDGETS, panels.values(), strict=True):
            each = [scores[times, SAMPLERS[0], budget] for times in LENGTHS]
            deviations = [float(values.std(ddof=1)) if len(values) > 1 else 0.0 for values in each]
            seconds = [times * lab.seconds for times in LENGTHS]
            curves.append(Curve(label, seconds, [float(values.mean()) for values in each], deviations))
    score = score_name("cnn", lab.book.images)
    plot_panels(panels, "training, s", f"{score}, {SAMPLERS[0]}", lab.out / "longer.png")
    head = ["", "length", "steps", "training, s", *(f"{s}, {b} passes" for s in SAMPLERS for b in BUDGETS), "memorised"]
    text = (
        f"Length 1 is {lab.seconds:g} s of training with {lab.jobs} at a time. {score}; an FPDM has the best of "
        f"{', '.join(map(str, ITERATIONS))} iterations per timestep. Memorised: share of the samples (ab2, 60 passes) "
        "that are as near to a training digit as only 1 % of the held-out digits are.\n\n![score against seconds of "
        f"training](longer.png)\n\n{markdown_table(head, rows)}\n\nThe rate of each contender is the best of these, "
        f"after length 1 with one seed, at {TRIAL['budget']} passes with {TRIAL['sampler']}.\n\n{trials}"
        f"\n\n{_claims(lab, parts, rates['fpdm'], runs)}"
    )
    return Section("Beyond the paper: longer training", text)


def _best_rates(lab: Laboratory, parts: dict[str, int]) -> tuple[dict[str, float], str]:
    """The best learning rate of each contender, and a table of the scores of all."""
    trials = [
        Training(f"longer-{name}-trial-{rate:g}", SHARE * parts[name], _arguments(lab, name, 0, rate)).cooled()
        for name in CONTENDERS for rate in RATES
    ]  # fmt: skip
    models, best, rows = iter(lab.attempted(trials)), {}, []
    for name, label in CONTENDERS.items():
        found = dict(zip(RATES, models, strict=False))
        scores = {rate: DIVERGED if model is None else _best(lab, [model], **TRIAL)[0].distances[0]
                  for rate, model in found.items()}  # fmt: skip
        best[name] = min(scores, key=scores.get)
        rows.append([label, *map(said, scores.values()), f"{best[name]:g}"])
    return best, markdown_table(["", *(f"{rate:g}" for rate in RATES), "best rate"], rows)


def _claims(lab: Laboratory, parts: dict[str, int], rate: float, runs: dict[tuple[str, int], list[Training]]) -> str:
    """The FPDMs of CLAIMS beside the usual one, all at the usual one's rate."""
    runs = runs | _train(lab, parts, dict.fromkeys(CLAIMS, rate), CLAIM_LENGTHS)
    rows = []
    for times in CLAIM_LENGTHS:
        usual = lab.score_models(lab.trained(runs["fpdm", times]), **TABLE).distances
        for name, label in {"fpdm": "FPDM", **CLAIMS}.items():
            trained = lab.trained(runs[name, times])
            distances = lab.score_models(trained, **TABLE).distances
            gap = ("", "") if name == "fpdm" else difference(distances, usual)
            rows.append([label, f"{times}", str(trained[0].steps), spread(distances), *gap])
    head = ["", "length", "steps", score_name("cnn", lab.book.images), "difference", ""]
    text = (
        f"What made the usual FPDM better or worse after a short training, at its learning rate ({rate:g}); "
        f"{TABLE['budget']} passes, {TABLE['sampler']}, {TABLE['iterations']} iterations per timestep. The usual one "
        "has N = 2, M = 3."
    )
    return f"{text}\n\n{markdown_table(head, rows)}"


def _train(
    lab: Laboratory, parts: dict[str, int], rates: dict[str, float], lengths: tuple[int, ...]
) -> dict[tuple[str, int], list[Training]]:
    """Train all that have a rate; returns the runs of each and of each length, one for each seed."""
    constant = {name: (SHARE - 1) * parts[name] for name in rates}  # steps before the first cool-down
    trunks = {
        (name, seed): Training(f"longer-{name}-seed{seed}", constant[name] * max(lengths), (
            *_arguments(lab, name, seed, rates[name]), "--run.checkpoint_every", constant[name]))
        for name in rates for seed in range(lab.seeds)
    }  # fmt: skip
    folders = dict(zip(trunks, lab.trainings.train(list(trunks.values())), strict=True))

    def fork(name: str, seed: int, times: int) -> Training:
        steps, words = SHARE * parts[name] * times, (*_arguments(lab, name, seed, rates[name]), "--run.keep_last", 1)
        return Training(f"longer-{name}-seed{seed}-{times}x", steps, words).forked(folders[name, seed])

    forks = {
        (name, times): [fork(name, seed, times) for seed in range(lab.seeds)] for name in rates for times in lengths
    }
    lab.trainings.train([run for runs in forks.values() for run in runs])
    return forks


def _arguments(lab: Laboratory, name: str, seed: int, rate: float = RATES[0]) -> tuple:
    return (*lab.train_arguments(name, seed), "--optim.lr_schedule", "constant", "--optim.lr", f"{rate:g}")


def _best(lab: Laboratory, models: list[Trained], **settings) -> tuple[Results, int | None]:
    """Scores, for an FPDM at the best number of iterations, and this number."""
    if not models[0].contender.source.iterative:
        return lab.score_models(models, **settings), None
    results = {k: lab.score_models(models, iterations=k, **settings) for k in ITERATIONS}
    best = min(results, key=lambda k: results[k].distances.mean())
    return results[best], best
