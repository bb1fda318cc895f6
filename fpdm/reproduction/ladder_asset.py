"""The model to keep of the ladder: its best form."""

from fpdm.evaluation.metrics import score_name
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.keep import Candidate, Card, keep
from fpdm.reproduction.ladder import SAMPLERS, Ladder, settings_of

BUDGET = 60  # by which the forms are compared
CARD = Card(
    asset="fpdm-digits",
    docs="docs/results/core.md",
    data="nine tenths of scikit-learn's 1,797 handwritten digits (the test part of UCI's \"Optical Recognition of\n"
    'Handwritten Digits"), 8x8 pixels resized to 32x32',
    limits="it draws digits, and no more.",
)


def asset(lab: Laboratory) -> Section:
    """Export the form with the lowest mean score, of those that the rungs keep, to out/asset."""
    climber, candidates, answers = Ladder(lab), {}, []
    for rung, entries, chosen in climber.climb()[0]:
        if chosen is not entries[0] or not answers:
            answers.append(f"{rung.question}: {chosen.form.label}")
        if chosen.diverged or chosen.form.key in candidates:
            continue
        results, settings = climber.best(chosen.models, BUDGET, SAMPLERS, settings_of(chosen.models[0]))
        runs = [model.run for model in chosen.models]
        candidates[chosen.form.key] = Candidate("; ".join(answers), runs, results, settings, lab.seconds)
    text = keep(list(candidates.values()), CARD, score_name("cnn", lab.book.images), lab.out)
    return Section("The model to keep", text)
