"""Which form of the fixed-point model is best: a ladder of questions, each asked of the best form so far.

Every form is trained for the same time as the DiTs and the paper's FPDM, with a learning rate of its own, and scored
at several budgets with its best number of iterations and the better of two solvers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fpdm.evaluation.seeds import Results, difference
from fpdm.reproduction.contenders import Trained
from fpdm.reproduction.experiments import Laboratory
from fpdm.reproduction.forms import OPPONENTS, RUNGS, START, Form, Options, Rung
from fpdm.reproduction.rates import DIVERGED, best_rate, try_rates
from fpdm.reproduction.trainings import SHARE, Training, config_path
from fpdm.sampling.guidance import InternalGuidance

RATES = (1e-3, 2e-3, 4e-3)
TRIAL = 1 / 4  # length of a trial of a rate
ITERATIONS = (1, 2, 4)
SAMPLERS = ("ab2", "ddim")
RATED = 60  # budget by which learning rates are compared, with the first of the samplers
SCALES = (1.5, 2.0)  # of internal guidance
CHOICE = (36, 120)  # budgets by which forms are compared, with the first of the samplers


class Entry(NamedTuple):
    """A form with its trained models, one for each seed, none if one of them diverged. trials: scores of its learning
    rates; rate: the best of these."""

    form: Form
    models: list[Trained]
    rate: float
    trials: dict[float, float]

    @property
    def diverged(self) -> bool:
        return not self.models


class Ladder:
    """Trains and scores forms in a laboratory; a form that is met again is not trained again."""

    def __init__(self, lab: Laboratory):
        self.lab = lab
        self._entries: dict[str, Entry] = {}

    def climb(self) -> tuple[list[tuple[Rung, list[Entry], Entry]], Entry]:
        """Each rung with its entries and the one that is kept, which the next one starts from; and the last of these.

        The first entry, which is the form so far, is kept unless another `beats` it.
        """
        best, found = START, []
        for rung in RUNGS:
            entries, chosen = self.ask(best, rung.forms)
            found.append((rung, entries, chosen))
            best = chosen.form
        return found, chosen

    def ask(self, form: Form, answers: dict[str, Options]) -> tuple[list[Entry], Entry]:
        """The form with each of these further options, the first of which has none, and the one that is kept."""
        forms = [form.with_options(label, more) for label, more in answers.items()]
        entries = self.entries([each for each in forms if each.trains])
        better = [entry for entry in entries[1:] if self.beats(entry, entries[0])]
        return entries, min(better, key=self.choice, default=entries[0])

    def entries(self, forms: list[Form]) -> list[Entry]:
        """The forms, trained."""
        new = {form.key: form for form in forms if form.key not in self._entries}
        trials = self._trials(new)
        rates = {key: best_rate(found, float) for key, found in trials.items()}
        wanted = {key: self._trainings(form, rates[key]) for key, form in new.items()
                  if trials[key][rates[key]] != DIVERGED}  # fmt: skip
        models = iter(self.lab.attempted([training for trainings in wanted.values() for training in trainings]))
        for key, form in new.items():
            seeds = [next(models) for _ in wanted.get(key, ())]
            self._entries[key] = Entry(form, [] if None in seeds else seeds, rates[key], trials[key])
        return [self._entries[form.key]._replace(form=form) for form in forms]

    def choices(self, entry: Entry) -> np.ndarray:
        """Of each seed, the geometric mean of the scores at the budgets of CHOICE, by which forms are compared."""
        if entry.diverged:
            return np.array([DIVERGED])
        scores = [self.chosen(entry, budget)[0].distances for budget in CHOICE]
        return np.exp(np.log(scores).mean(0))

    def chosen(self, entry: Entry, budget: int) -> tuple[Results, dict]:
        """Scores at a budget by which forms are compared, with internal guidance where the form has an early head and
        it helps; and how it is sampled."""
        return self.best(entry.models, budget, SAMPLERS[:1], settings_of(entry.models[0]))

    def choice(self, entry: Entry) -> float:
        """The mean of `choices`."""
        return float(self.choices(entry).mean())

    def beats(self, entry: Entry, other: Entry) -> bool:
        """Whether an entry is better by more than the spread of the seeds. One seed has none: then, by anything."""
        ours, theirs = self.choices(entry), self.choices(other)
        if entry.diverged or other.diverged or len(ours) == 1:
            return bool(ours.mean() < theirs.mean())
        return difference(ours, theirs)[1] == "better"

    def best(
        self, models: list[Trained], budget: int, samplers: tuple[str, ...], variants: Sequence[dict] = ({},)
    ) -> tuple[Results, dict]:
        """Scores with the best number of iterations and the best of the samplers and variants, chosen on the first
        seed. variants: further settings of a SamplingConfig."""
        iterative = models[0].contender.source.iterative
        cost = models[0].contender.source.cost
        ways = [{"iterations": k} for k in ITERATIONS if cost.blocks(k) <= budget / 2] if iterative else [{}]
        options = [{"budget": budget, "sampler": sampler, **way, **variant}
                   for way in ways for sampler in samplers for variant in variants
                   if cost.last_exit(way.get("iterations")) > variant.get("internal_exit", 0)]  # fmt: skip
        first = [self.lab.score_models(models[:1], **settings).distances[0] for settings in options]
        chosen = options[int(np.argmin(first))]
        return self.lab.score_models(models, **chosen), chosen

    def _trials(self, forms: dict[str, Form]) -> dict[str, dict[float, float]]:
        """Scores of each form with some learning rates, in short trainings with one seed."""
        steps = {key: max(round(TRIAL * self._steps(form)), SHARE) for key, form in forms.items()}

        def attempt(pairs: list[tuple[str, float]]) -> list[float]:
            models = self.lab.attempted([
                Training(f"{key}-trial-{rate:g}", steps[key], self._words(forms[key], 0, rate)).cooled()
                for key, rate in pairs
            ])  # fmt: skip
            return [DIVERGED if model is None else self.best([model], RATED, SAMPLERS[:1])[0].distances[0]
                    for model in models]  # fmt: skip

        found: dict[str, dict[float, float]] = {}
        for rates in dict.fromkeys(form.rates or RATES for form in forms.values()):
            alike = [key for key, form in forms.items() if (form.rates or RATES) == rates]
            found |= try_rates(alike, rates, attempt, float)
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
                f"{rate or (form.rates or RATES)[0]:g}", *options, *self.lab.arguments)  # fmt: skip


def guided_ways(trained: Trained) -> list[dict]:
    """Internal guidance with each of SCALES, as further settings: by the model's early head, or after the first update
    (block of a DiT)."""
    source = trained.contender.source
    exit_ = InternalGuidance().number(source.early_head, source.cost)
    return [{"internal_guidance": scale, "internal_exit": exit_} for scale in SCALES]


def settings_of(trained: Trained) -> list[dict]:
    """Further settings to choose the best of: with an early head, internal guidance or none."""
    return [{}, *(guided_ways(trained) if trained.contender.source.early_head else ())]


def with_iterations(way: dict) -> str:
    """Said after a score: the iterations per timestep, of an FPDM, and the scale of internal guidance."""
    said = f", {way['iterations']} it." if "iterations" in way else ""
    return said + (f", w = {way['internal_guidance']:g}" if "internal_guidance" in way else "")
