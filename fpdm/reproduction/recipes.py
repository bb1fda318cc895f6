"""What each choice of a newer recipe brings: the process, the blocks, the optimizer, one at a time.

Each is trained for the same time as the paper's recipe, with a learning rate of its own, for the paper's FPDM and for a
DiT alike. A choice that costs more per step therefore makes fewer steps.
"""

from fpdm.chain.choices import CHOICES, Choice
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import Results, difference, spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.forms import Form
from fpdm.reproduction.ladder import ITERATIONS, RATES, TRIAL, Entry, Ladder, with_iterations

FAMILIES = {"fpdm": "FPDM", "dit": "DiT"}
BUDGET = 60  # a DiT makes 5 timesteps, with which `ab2` is about as good as with more
SAMPLERS = {"discrete": ("ab2", "ddim", "heun"), "flow": ("ab2", "euler", "heun")}  # a flow's euler is its ddim
SHIFTS = {"discrete": (1.0,), "flow": (1.0, 2.0)}


def recipes(lab: Laboratory) -> Section:
    """A table of each family: every choice beside the paper's recipe."""
    climber, score = Ladder(lab), score_name("cnn", lab.book.images)
    own = [f"{label} of {', '.join(f'{rate:g}' for rate in choice.rates)} for {choice.tuned}, with the learning rate "
           "of the paper's recipe for the rest" for label, choice in CHOICES.items() if choice.rates]  # fmt: skip
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    text = (
        f"{lab.seconds:g} s of training each, {lab.jobs} at a time, {lab.seeds} seeds; {score} at {BUDGET} block "
        f"passes. Rates: the best of {rates} after {TRIAL:.0%} of the time, with one seed"
        f"{''.join(f'; {each}' for each in own)}; half and twice the best are tried too where it is at an edge. Each "
        f"has the best of {', '.join(SAMPLERS['discrete'])}, a flow of {', '.join(SAMPLERS['flow'])} with a shift of "
        f"{' or '.join(f'{shift:g}' for shift in SHIFTS['flow'])}, an FPDM also the best of "
        f"{', '.join(map(str, ITERATIONS))} iterations, as they are on the first seed. Time per step: against the "
        "paper's recipe, eager."
    )
    parts = [text]
    for config, family in FAMILIES.items():
        entries = trained(climber, config)
        rows, base = [], None if entries[0].diverged else _scores(climber, entries[0])[0].distances
        for entry in entries:
            if entry.diverged:
                rows.append([entry.form.label, *[""] * 3, f"{entry.rate:g}", "diverged", *[""] * 4])
                continue
            (found, way), steps = _scores(climber, entry), entry.models[0].steps
            against = ("", "") if base is None or entry is entries[0] else difference(found.distances, base)
            rows.append([
                entry.form.label, f"{entry.models[0].parameters:,d}", f"{steps:,d}",
                "" if base is None else f"{entries[0].models[0].steps / steps:.2f}", f"{entry.rate:g}",
                spread(found.distances), *against, _said(way), f"{found.memorised.mean():.1%}",
            ])  # fmt: skip
        head = [family, "parameters", "steps", "time per step", "rate", score, "minus the paper's", "", "sampled with",
                "memorised"]  # fmt: skip
        parts.append(markdown_table(head, rows, 1))
    return Section("What each choice brings", "\n\n".join(parts))


def _scores(climber: Ladder, entry: Entry) -> tuple[Results, dict]:
    """With what is best for its process, and how that is."""
    kind = entry.form.options.get("diffusion.process", "discrete")
    return climber.best(entry.models, BUDGET, SAMPLERS[kind], [{"shift": shift} for shift in SHIFTS[kind]])


def trained(climber: Ladder, config: str) -> list[Entry]:
    """The choices that are scored, the paper's recipe first, each trained at its best rate."""
    paper, *others = [(label, choice) for label, choice in CHOICES.items() if choice.scored]
    (base,) = climber.entries([_form(config, *paper)])
    return [base, *climber.entries([_form(config, *other, base.rate) for other in others])]


def _form(config: str, label: str, choice: Choice, rate: float | None = None) -> Form:
    """rate: the best one of the paper's recipe, which a choice keeps if it is not what is tuned."""
    kept = {} if choice.tuned == "optim.lr" else {"optim.lr": f"{rate:g}"}
    return Form(label, config, choice.options | kept, choice.tuned, choice.rates)


def _said(way: dict) -> str:
    """How it is sampled."""
    shift = "" if way["shift"] == 1 else f", shift {way['shift']:g}"
    return f"{way['sampler']}{shift}{with_iterations(way)}"
