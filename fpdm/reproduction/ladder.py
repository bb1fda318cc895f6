"""Which form of the fixed-point model is best: a ladder of questions, each asked of the best form so far.

Every form is trained for the same time as the DiTs and the paper's FPDM, with a learning rate of its own, and scored
at several budgets with its best number of iterations and the better of two solvers.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import Results, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.injections import INJECTIONS
from fpdm.reproduction.contenders import Trained
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.frontier import Measured, frontier
from fpdm.reproduction.trainings import SHARE, Training, config_path

Options = dict[str, object]  # of train.py

RATES = (1e-3, 2e-3, 4e-3)
TRIAL = 1 / 4  # length of a trial of a rate
ITERATIONS = (1, 2, 4)
SAMPLERS = ("ab2", "ddim")
CHOICE = (36, 120)  # budgets by which forms are compared, with the first of the samplers
BUDGETS = (24, 36, 60, 120, 240)
NEAR = 60  # budget at which memorisation is reported


class Form(NamedTuple):
    """A network and how it is trained. config: in the data set's configs. options: further ones of train.py.

    tuned: the option that is its learning rate. rates: the values of it that are tried; () for RATES.
    """

    label: str
    config: str
    options: Options
    tuned: str = "optim.lr"
    rates: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """A name for files, the same for the same options; a run's config.yaml says which they are."""
        told = sorted(self.options.items()) + ([] if self.tuned == "optim.lr" else [("tuned", self.tuned)])
        digest = hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest()
        return f"ladder-{self.config}-{digest}"

    @property
    def tried(self) -> tuple[float, ...]:
        """The learning rates that are tried."""
        return self.rates or RATES

    @property
    def trains(self) -> bool:
        """False where updates without gradient would cut off what is before the loop; see `Injection.every_update`."""
        injection = INJECTIONS[self.options.get("model.injection", "mlp")]
        return injection.every_update or not self.options.get("sjfb.no_grad", 1)


class Rung(NamedTuple):
    """A question. forms: further options of each answer beside the best form so far, by name; None takes one away."""

    question: str
    forms: dict[str, Options]


OPPONENTS = (
    Form("DiT, 12 blocks", "dit", {}),
    Form("DiT, 6 blocks", "dit", {"model.depth": 6}),
    Form("DiT, 3 blocks", "dit", {"model.depth": 3}),
    Form("the paper's FPDM", "fpdm", {}),
)
START = Form("3 blocks, looped", "fpdm", {
    "model.pre_depth": 0, "model.post_depth": 0, "model.implicit_depth": 3, "model.injection": "add",
    "sjfb.variant": "multi-step", "sjfb.no_grad": 0, "sjfb.grad": 4, "sjfb.grow": "[[0,1],[0.4,2],[0.65,4]]",
    "model.reuse": "false",
})  # fmt: skip
RUNGS = (
    Rung("blocks in the loop", {
        "3 blocks": {},
        "2 blocks": {"model.implicit_depth": 2},
        # Widths at which 2, 4 and 6 blocks have as many parameters as 3 of width 128.
        "2 wide blocks": {"model.implicit_depth": 2, "model.hidden_size": 156},
        "4 narrow blocks": {"model.implicit_depth": 4, "model.hidden_size": 112},
        "6 narrow blocks": {"model.implicit_depth": 6, "model.hidden_size": 88},
        "2 blocks, 1 after": {"model.implicit_depth": 2, "model.post_depth": 1},
        "1 block, 1 before, 1 after": {"model.implicit_depth": 1, "model.pre_depth": 1, "model.post_depth": 1},
    }),
    Rung("growth", {
        "1, 2, 4 updates": {},
        "1, 2": {"sjfb.grad": 2, "sjfb.grow": "[[0,1],[0.5,2]]"},
        "1, 2, late": {"sjfb.grad": 2, "sjfb.grow": "[[0,1],[0.75,2]]"},
        "2 from the start": {"sjfb.grad": 2, "sjfb.grow": None},
        "1 to 3, drawn": {"sjfb.variant": "stochastic", "sjfb.grad": 3, "sjfb.grow": None},
    }),
    Rung("injection", {
        "as before": {},
        **{f"`{name}`": {"model.injection": name} for name in ("mlp", "norm", "decay", "lanes", "none")},
    }),
    Rung("supervision", {
        "last": {},
        "random": {"sjfb.supervise": "random"},
        "all": {"sjfb.supervise": "all"},
        "distil": {"sjfb.supervise": "distil"},
        "early head": {"model.early_head": 1},
    }),
    Rung("vectors for the loops", {"none": {}, "2": {"model.loop_embedding": 2}, "4": {"model.loop_embedding": 4}}),
    Rung("consistency and starts", {
        "neither": {},
        "consistency": {"sjfb.consistency": 0.1},
        "consistency, longer": {"sjfb.consistency": 0.1, "sjfb.consistency_from": 0.7},
        "other starts": {"sjfb.start": "[input,other]", "sjfb.variant": "stochastic", "sjfb.no_grad": 2},
    }),
)  # fmt: skip


class Entry(NamedTuple):
    """A form with its trained models, one for each seed, and its learning rate."""

    form: Form
    models: list[Trained]
    rate: float


class Ladder:
    """Trains and scores forms in a laboratory; a form that is met again is not trained again."""

    def __init__(self, lab: Laboratory):
        self.lab = lab
        self._entries: dict[str, Entry] = {}

    def climb(self) -> tuple[list[tuple[Rung, list[Entry], Entry]], Entry]:
        """Each rung with its entries and the best of them, which the next one starts from; and the last best."""
        best, found = START, []
        for rung in RUNGS:
            forms = [best._replace(label=label, options=_merged(best.options, more))
                     for label, more in rung.forms.items()]  # fmt: skip
            forms = [form for form in forms if form.trains]
            entries = self.entries(forms)
            chosen = min(entries, key=self.choice)
            found.append((rung, entries, chosen))
            best = chosen.form
        return found, chosen

    def entries(self, forms: list[Form]) -> list[Entry]:
        """The forms, trained."""
        rates = self._rates([form for form in forms if form.key not in self._entries])
        wanted = {form.key: self._trainings(form, rates[form.key]) for form in forms if form.key in rates}
        models = iter(self.lab.trained([training for trainings in wanted.values() for training in trainings]))
        for key, trainings in wanted.items():
            form = next(form for form in forms if form.key == key)
            self._entries[key] = Entry(form, [next(models) for _ in trainings], rates[key])
        return [self._entries[form.key]._replace(form=form) for form in forms]

    def choice(self, entry: Entry) -> float:
        """The geometric mean of the scores at the budgets of CHOICE, by which forms are compared."""
        scores = [self.best(entry.models, budget, SAMPLERS[:1])[0].distances.mean() for budget in CHOICE]
        return math.exp(sum(map(math.log, scores)) / len(scores))

    def best(
        self, models: list[Trained], budget: int, samplers: tuple[str, ...], shifts: tuple[float, ...] = (1.0,)
    ) -> tuple[Results, dict]:
        """Scores with the best number of iterations and the best of the samplers and shifts, as on the first seed."""
        iterative = models[0].contender.source.iterative
        cost = models[0].contender.source.cost
        ways = [{"iterations": k} for k in ITERATIONS if cost.blocks(k) <= budget / 2] if iterative else [{}]
        options = [{"budget": budget, "sampler": sampler, "shift": shift, **way}
                   for way in ways for sampler in samplers for shift in shifts]  # fmt: skip
        first = [self.lab.score_models(models[:1], **settings).distances[0] for settings in options]
        chosen = options[int(np.argmin(first))]
        return self.lab.score_models(models, **chosen), chosen

    def _rates(self, forms: list[Form]) -> dict[str, float]:
        """The best learning rate of each form in a short training with one seed."""
        steps = {form.key: max(round(TRIAL * self._steps(form)), SHARE) for form in forms}
        trials = [Training(f"{form.key}-trial-{rate:g}", steps[form.key], self._words(form, 0, rate)).cooled()
                  for form in forms for rate in form.tried]  # fmt: skip
        models, found = iter(self.lab.trained(trials)), {}
        for form in forms:
            scores = {rate: self.best([next(models)], CHOICE[-1], SAMPLERS[:1])[0].distances[0] for rate in form.tried}
            found[form.key] = min(scores, key=scores.get)
        return found

    def _trainings(self, form: Form, rate: float) -> list[Training]:
        steps = self._steps(form)
        return [Training(f"{form.key}-seed{seed}", steps, self._words(form, seed, rate)).cooled()
                for seed in range(self.lab.seeds)]  # fmt: skip

    def _steps(self, form: Form) -> int:
        """Steps in the laboratory's seconds: those of the first opponent are measured once, the others against it."""
        first = OPPONENTS[0]
        if form.key == first.key:
            return self.lab.equal_time(form.key, {form.key: self._words(form, 0)})[form.key]
        words = {each.key: self._words(each, 0) for each in (first, form)}
        return self.lab.equal_time(form.key, words, (first.key, self._steps(first)))[form.key]

    def _words(self, form: Form, seed: int, rate: float | None = None) -> tuple:
        options = [word for name, value in form.options.items() for word in (f"--{name}", value)]
        return ("--config", config_path(self.lab.data.configs, form.config), "--data.latents", self.lab.out / "latents",
                "--run.seed", seed, "--run.keep_last", 1, "--optim.lr_schedule", "constant", f"--{form.tuned}",
                f"{rate or form.tried[0]:g}", *options, *self.lab.arguments)  # fmt: skip


def ladder(lab: Laboratory) -> Section:
    """The rungs, then the best form of each beside the DiTs and the paper's FPDM at every budget."""
    climber = Ladder(lab)
    opponents = climber.entries(list(OPPONENTS))
    rungs, _ = climber.climb()
    score = score_name("cnn", lab.book.images)
    parts = []
    for rung, entries, chosen in rungs:
        rows = []
        for entry in entries:
            cells = [climber.best(entry.models, budget, SAMPLERS[:1]) for budget in CHOICE]
            rows.append([
                entry.form.label, f"{entry.models[0].parameters:,d}", f"{entry.models[0].steps:,d}", f"{entry.rate:g}",
                *(spread(found.distances) + with_iterations(way) for found, way in cells),
                f"{climber.choice(entry):.2f}{', kept' if entry is chosen else ''}",
            ])  # fmt: skip
        head = [rung.question, "parameters", "steps", "rate", *(f"{b} passes" for b in CHOICE), "geometric mean"]
        parts.append(f"### {rung.question.capitalize()}\n\n{markdown_table(head, rows, 1)}")
    finalists = [*opponents, *(chosen._replace(form=chosen.form._replace(label=f"{rung.question}: {chosen.form.label}"))
                               for rung, _, chosen in rungs)]  # fmt: skip
    text = (
        f"{lab.seconds:g} s of training each, {lab.jobs} at a time, {lab.seeds} seeds; {score}. Rates: the best of "
        f"{', '.join(f'{rate:g}' for rate in RATES)} after {TRIAL:.0%} of the time, with one seed. A form has the best "
        f"of {', '.join(map(str, ITERATIONS))} iterations per timestep and of the solvers, as they are on the first "
        f"seed. The rungs are scored with {SAMPLERS[0]}."
    )
    measured = [_measured(climber, entry) for entry in finalists]
    final = frontier(measured, BUDGETS, NEAR, score, lab.out, "ladder")
    return Section("Which form is best", "\n\n".join([text, *parts, f"### Every budget\n\n{final}"]))


def _measured(climber: Ladder, entry: Entry) -> Measured:
    found = [climber.best(entry.models, budget, SAMPLERS) for budget in BUDGETS]
    results = [(each, f"{way['sampler']}{with_iterations(way)}") for each, way in found]
    return Measured(entry.form.label, entry.form.config == "dit", entry.models[0].parameters, results)


def _merged(options: Options, more: Options) -> Options:
    merged = options | more
    return {name: value for name, value in merged.items() if value is not None}


def with_iterations(way: dict) -> str:
    """Said after a score: the iterations per timestep, of an FPDM."""
    return f", {way['iterations']} it." if "iterations" in way else ""
