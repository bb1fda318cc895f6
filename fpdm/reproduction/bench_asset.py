"""The model to keep of the section `core`: its best form."""

from fpdm.evaluation.seeds import Results
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.bench_core import best_way
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.keep import Candidate, Card, keep

CARD = Card(
    asset="fpdm-cifar10",
    docs="docs/results/core.md",
    data="nine tenths of CIFAR-10's training images, 32x32 pixels",
    limits="the images have the colours and the composition of CIFAR-10, but rarely a clear object. The network and\n"
    "its training are small: they are made for comparisons on two CPU cores.",
)


def asset(bench: Bench) -> Section:
    """Export the form with the lowest mean score at the middle budget to out/asset."""
    budget, candidates = bench.subject.middle, []
    for name in bench.core.entrants:
        if name in bench.subject.forms:
            sampler, way = best_way(bench, name, budget)
            results = Results(bench.score(name, budget=budget, sampler=sampler, **way))
            label = bench.core.entrants[name].label
            settings = {"budget": budget, "sampler": sampler, **way}
            candidates.append(Candidate(label, bench.runs(name), results, settings, bench.core.seconds))
    return Section("The model to keep", keep(candidates, CARD, bench.score_name, bench.out))
