"""The section of the report that compares forms of the fixed-point model with the DiTs and the paper's FPDM."""

from fpdm.evaluation.seeds import Results
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.frontier import Measured, frontier
from fpdm.reproduction.ladder import with_iterations

OPPONENTS = ("dit-12", "dit-6", "dit-3", "fpdm")
BUDGETS, SAMPLERS = (24, 36, 60, 120, 240), ("ab2", "ddim")


def core(bench: Bench) -> Section:
    """The forms of the fixed-point model beside the DiTs and the paper's FPDM, at every budget; the best of two solvers
    and of the numbers of updates, as they are in few images of the first seed."""
    entrants = {name: bench.subject.entrants[name] for name in OPPONENTS if name in bench.subject.entrants}
    networks = []
    for name, entrant in (entrants | bench.subject.forms).items():
        cost = bench.trained(bench.runs(name)[0]).contender.source.cost
        results = []
        for budget in BUDGETS:
            ways = [way for way in bench.ways(name) if cost.blocks(way.get("iterations")) <= budget / 2]
            options = [{"budget": budget, "sampler": sampler, **way} for way in ways for sampler in SAMPLERS]
            best = bench.best(name, options)
            bench.fill([(name, best)])
            results.append((Results(bench.score(name, **best)), f"{best['sampler']}{with_iterations(best)}"))
        trained = bench.trained(bench.runs(name)[0])
        networks.append(Measured(entrant.label, not cost.iterative, trained.parameters, results))
    lines = [[bench.subject.forms[name].label, f"{bench.trained(bench.runs(name)[0]).steps:,d}",
              f"{bench.forms.rate(name):g}", " ".join(map(str, bench.subject.forms[name].arguments))]
             for name in bench.subject.forms]  # fmt: skip
    forms = markdown_table(["form", "steps", "rate", "beside the FPDM's config"], lines, 1)
    table = frontier(networks, BUDGETS, bench.subject.middle, bench.score_name, bench.out, "core")
    return Section("Which form is best", f"{forms}\n\n{table}")
