"""The section of the report on the ladder: a table of each rung, what reuse does, and every budget."""

import numpy as np

from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import difference, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.forms import EXPLICIT
from fpdm.reproduction.frontier import Measured, frontier
from fpdm.reproduction.ladder import (
    CHOICE,
    ITERATIONS,
    OPPONENTS,
    RATES,
    SAMPLERS,
    TRIAL,
    Entry,
    Ladder,
    guided_ways,
    settings_of,
    with_iterations,
)
from fpdm.reproduction.rates import said

BUDGETS = (24, 36, 60, 120, 240)
NEAR = 60  # budget at which memorisation is reported
HEAD = "model.early_head"
AIDS = {name for answers in EXPLICIT.values() for options in answers.values() for name in options}  # of a DiT
REUSING = ("`mlp`", "`decay`")  # forms of which reuse is a question, beside the best


def ladder(lab: Laboratory) -> Section:
    """The rungs, then the best form of each beside the DiTs and the paper's FPDM at every budget."""
    climber = Ladder(lab)
    opponents = climber.entries(list(OPPONENTS))
    rungs, best = climber.climb()
    explicit = [(entry, *climber.ask(entry.form, EXPLICIT[entry.form.label])) for entry in opponents
                if entry.form.label in EXPLICIT]  # fmt: skip
    score = score_name("cnn", lab.book.images)
    text = (
        f"{lab.seconds:g} s of training each, {lab.jobs} at a time, {lab.seeds} seeds; {score}. Rates: the best of "
        f"{', '.join(f'{rate:g}' for rate in RATES)} after {TRIAL:.0%} of the time, with one seed; where the best is "
        "at an edge, half or twice of it is tried too. A form has the best of "
        f"{', '.join(map(str, ITERATIONS))} iterations per timestep and of the solvers, as they are on the first seed. "
        f"The rungs are scored with {SAMPLERS[0]}; forms with an early head use internal guidance where it helps. Each "
        "rung keeps its first form, unless another is better by more than the standard deviation of the differences "
        "over the seeds (with one seed: by anything). Memorised: share of the samples that are as near to a training "
        "digit as only 1 % of the held-out digits are. A form of which a training diverged counts as the worst."
    )
    parts = [text, _table(climber, "opponents", opponents, None)]
    parts += [f"### {rung.question.capitalize()}\n\n{_table(climber, rung.question, entries, chosen)}"
              for rung, entries, chosen in rungs]  # fmt: skip
    parts += [f"### The same for the {base.form.label}\n\n{_table(climber, base.form.label, entries, chosen)}"
              for base, entries, chosen in explicit]  # fmt: skip
    the_best = _named(best, f"the best: {best.form.label}")
    trained = [entry for _, entries, _ in rungs for entry in entries if entry.form.label in REUSING]
    parts.append(f"### Reuse of solutions\n\n{_reuse(climber, [*opponents, *trained, the_best])}")
    headed = [_named(entry, f"{base.form.label}, {entry.form.label}") for base, entries, _ in explicit
              for entry in entries if HEAD in entry.form.options]  # fmt: skip
    headed += [_named(entry, f"{rung.question}: {entry.form.label}") for rung, entries, _ in rungs
               for entry in entries[1:] if HEAD in entry.form.options]  # fmt: skip
    parts.append(f"### Internal guidance\n\n{_guided(climber, [*headed, the_best])}")
    finalists = [
        *opponents,
        *(_named(chosen, f"{base.form.label}, {chosen.form.label}") for base, entries, chosen in explicit
          if chosen is not entries[0]),
        *(_named(chosen, f"{rung.question}: {chosen.form.label}") for rung, _, chosen in rungs),
        *(entry for entry in headed if not entry.diverged),
    ]  # fmt: skip
    measured = [_measured(climber, entry) for entry in finalists if not entry.diverged]
    parts.append(f"### Every budget\n\n{frontier(measured, BUDGETS, NEAR, score, lab.out, 'ladder')}")
    return Section("Which form is best", "\n\n".join(parts))


def _named(entry: Entry, label: str) -> Entry:
    return entry._replace(form=entry.form._replace(label=label))


def _table(climber: Ladder, question: str, entries: list[Entry], chosen: Entry | None) -> str:
    """chosen: the entry that is kept, for a rung; the others are compared with the first."""
    rows = []
    for entry in entries:
        mean = said(climber.choice(entry)) + (", kept" if entry is chosen else "")
        if entry.diverged:
            rows.append([entry.form.label, "", "", "", _rate(entry), *[""] * 2 * len(CHOICE), mean, ""])
            continue
        cells = []
        for budget in CHOICE:
            found, way = climber.chosen(entry, budget)
            cells += [spread(found.distances) + with_iterations(way), f"{found.memorised.mean():.1%}"]
        compared = chosen is not None and entry is not entries[0] and not entries[0].diverged
        against = difference(climber.choices(entry), climber.choices(entries[0])) if compared else ("", "")
        first = entry.models[0]
        rows.append([entry.form.label, f"{first.parameters:,d}", f"{first.steps:,d}",
                     f"{np.mean([model.seconds for model in entry.models]):.0f}", _rate(entry), *cells, mean,
                     ", ".join(filter(None, against))])  # fmt: skip
    passes = [cell for budget in CHOICE for cell in (f"{budget} passes", "memorised")]
    head = [question, "parameters", "steps", "training, s", "rate", *passes, "geometric mean", "minus the first"]
    return markdown_table(head, rows, 1)


def _rate(entry: Entry) -> str:
    """The learning rate, and those at which trials diverged."""
    bad = [f"{rate:g}" for rate, score in entry.trials.items() if said(score) == "diverged"]
    return f"{entry.rate:g}" + (f" (diverged: {', '.join(bad)})" if bad else "")


def _reuse(climber: Ladder, entries: list[Entry]) -> str:
    """Scores of these forms, each once, with and without reuse; of those that can reuse."""
    rows = []
    for entry in {entry.form.key: entry for entry in entries}.values():
        if entry.diverged or not entry.models[0].contender.source.reusable:
            continue
        for reuse in (False, True):
            cells = []
            for budget in CHOICE:
                found, way = climber.best(entry.models, budget, SAMPLERS[:1], [{"reuse": reuse}])
                cells += [spread(found.distances) + with_iterations(way), f"{found.memorised.mean():.1%}"]
            rows.append([entry.form.label, "on" if reuse else "off", *cells])
    head = ["form", "reuse", *(cell for budget in CHOICE for cell in (f"{budget} passes", "memorised"))]
    return markdown_table(head, rows, 2)


def _guided(climber: Ladder, entries: list[Entry]) -> str:
    """Scores of these forms without and with internal guidance, with the best of SCALES as it is on the first seed. The
    exit is the model's early head, or is after the first update."""
    rows = []
    for entry in entries:
        if entry.diverged:
            continue
        for variants in ([{}], guided_ways(entry.models[0])):
            cells = []
            for budget in CHOICE:
                found, way = climber.best(entry.models, budget, SAMPLERS[:1], variants)
                cells += [spread(found.distances) + with_iterations(way), f"{found.memorised.mean():.1%}"]
            rows.append([entry.form.label, "off" if variants == [{}] else "on", *cells])
    head = ["form", "guidance", *(cell for budget in CHOICE for cell in (f"{budget} passes", "memorised"))]
    return markdown_table(head, rows, 2)


def _measured(climber: Ladder, entry: Entry) -> Measured:
    """At every budget; forms with an early head with internal guidance where that is better."""
    found = [climber.best(entry.models, budget, SAMPLERS, settings_of(entry.models[0])) for budget in BUDGETS]
    results = [(each, f"{way['sampler']}{with_iterations(way)}") for each, way in found]
    milliseconds = [each.ms_per_image for each, _ in found]
    explicit, aided = entry.form.config == "dit", entry.form.options.keys() & AIDS != set()
    return Measured(entry.form.label, explicit, entry.models[0].parameters, results, milliseconds, aided)
