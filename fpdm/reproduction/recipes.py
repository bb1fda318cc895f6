"""What each choice of a newer recipe brings: the process, the blocks, the optimizer, one at a time.

Each is trained for the same time as the paper's recipe, with a learning rate of its own, for the paper's FPDM and for a
DiT alike. A choice that costs more per step therefore makes fewer steps.
"""

from fpdm.chain.choices import CHOICES
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.forms import Form
from fpdm.reproduction.ladder import ITERATIONS, RATES, SAMPLERS, TRIAL, Ladder, with_iterations

FAMILIES = {"fpdm": "FPDM", "dit": "DiT"}
BUDGETS = (60, 120)


def recipes(lab: Laboratory) -> Section:
    """A table of each family: every choice beside the paper's recipe."""
    climber, score = Ladder(lab), score_name("cnn", lab.book.images)
    text = (
        f"{lab.seconds:g} s of training each, {lab.jobs} at a time, {lab.seeds} seeds; {score}. Rates: the best of "
        f"{', '.join(f'{rate:g}' for rate in RATES)} after {TRIAL:.0%} of the time, with one seed, and of half and "
        "twice the best where that is at an edge; Muon's own rate stays at its default. Each has the better of "
        f"{' and '.join(SAMPLERS)}, an FPDM also the best of {', '.join(map(str, ITERATIONS))} iterations, as they are "
        "on the first seed. Time per step: against the paper's recipe, eager."
    )
    parts = [text]
    for config, family in FAMILIES.items():
        entries = climber.entries([Form(label, config, options) for label, options in CHOICES.items()])
        rows = []
        for entry in entries:
            if entry.diverged:
                rows.append([entry.form.label, *[""] * 3, f"{entry.rate:g}", "diverged", *[""] * len(BUDGETS)])
                continue
            cells = [climber.best(entry.models, budget, SAMPLERS) for budget in BUDGETS]
            rows.append([
                entry.form.label, f"{entry.models[0].parameters:,d}", f"{entry.models[0].steps:,d}",
                "" if entries[0].diverged else f"{entries[0].models[0].steps / entry.models[0].steps:.2f}",
                f"{entry.rate:g}",
                *(f"{spread(found.distances)}, {way['sampler']}{with_iterations(way)}" for found, way in cells),
                f"{cells[0][0].memorised.mean():.1%}",
            ])  # fmt: skip
        head = [family, "parameters", "steps", "time per step", "rate", *(f"{b} passes" for b in BUDGETS), "memorised"]
        parts.append(markdown_table(head, rows, 1))
    return Section("What each choice brings", "\n\n".join(parts))
