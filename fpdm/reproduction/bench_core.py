"""The section of the report that compares forms of the fixed-point model with the DiTs and the paper's FPDM."""

from fpdm.evaluation.seeds import Results
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.bench_speed import key, milliseconds
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.frontier import Measured, frontier
from fpdm.reproduction.ladder import settings_of, with_iterations
from fpdm.reproduction.rates import said

BUDGETS, SAMPLERS = (24, 36, 60, 120, 240), ("ab2", "ddim")


def core(bench: Bench) -> Section:
    """The forms of the fixed-point model beside the DiTs and the paper's FPDM, at every budget; the best of two solvers
    and of the numbers of updates, as they are in few images of the first seed."""
    entrants = bench.core.entrants
    best = {name: [best_way(bench, name, budget) for budget in BUDGETS] for name in entrants}
    measured = [(name, way, budget) for name, found in best.items()
                for budget, (_, way) in zip(BUDGETS, found, strict=True)]  # fmt: skip
    times = milliseconds(bench, measured, "speed-core.json")
    networks = []
    for name, entrant in entrants.items():
        trained = bench.trained(bench.runs(name)[0])
        results = []
        for budget, (sampler, way) in zip(BUDGETS, best[name], strict=True):
            scores = bench.score(name, budget=budget, sampler=sampler, **way)
            results.append((Results(scores), f"{sampler}{with_iterations(way)}"))
        took = [times[key(name, way, budget)] for budget, (_, way) in zip(BUDGETS, best[name], strict=True)]
        source = trained.contender.source
        networks.append(Measured(entrant.label, not source.iterative, trained.parameters, results, took,
                                 aided=source.early_head > 0))  # fmt: skip
    table = frontier(networks, BUDGETS, bench.subject.middle, bench.score_name, bench.out, "core")
    text = f"Sampling times are those of a batch of {bench.batch_size} on all cores, with nothing else running."
    return Section("Which form is best", f"{_trials(bench)}\n\n{text}\n\n{table}")


def _trials(bench: Bench) -> str:
    """What was tried, with the steps of a whole training and the best trial; those that were trained are marked."""
    steps = bench.candidates.steps()
    found = bench.candidates.rate_trials(bench.candidates.entrants)
    rows = []
    for name, entrant in bench.candidates.entrants.items():
        best = min(found[name], key=lambda trial: trial.loss)
        rows.append([entrant.label, f"{steps[name]:,d}", f"{best.rate:g}", said(best.loss, ".4f"),
                     "yes" if name in bench.core.entrants else "", " ".join(map(str, entrant.arguments))])  # fmt: skip
    head = ["network", "steps", "rate", "held-out loss of the trial", "trained", "what differs from the config"]
    return markdown_table(head, rows, 1)


def best_way(bench: Bench, name: str, budget: int) -> tuple[str, dict]:
    """The solver of a network at a budget, and its number of updates and internal guidance, which only those with an
    early head may have; with scores of all seeds computed."""
    trained = bench.trained(bench.runs(name)[0])
    cost = trained.contender.source.cost
    ways = [way for way in bench.ways(name) if cost.blocks(way.get("iterations")) <= budget / 2]
    options = [{"budget": budget, "sampler": sampler, **way, **more}
               for way in ways for sampler in SAMPLERS for more in settings_of(trained)]  # fmt: skip
    best = bench.best(name, options)
    bench.fill([(name, best)])
    return best["sampler"], {name: value for name, value in best.items() if name not in ("budget", "sampler")}
