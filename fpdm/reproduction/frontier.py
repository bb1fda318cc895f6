"""Networks at several budgets: their scores, what they cost, and which are behind the best explicit one."""

from pathlib import Path
from typing import NamedTuple

from fpdm.evaluation.figures import Series, plot_series
from fpdm.evaluation.seeds import Results, difference, spread
from fpdm.evaluation.tables import markdown_table


class Measured(NamedTuple):
    """A network. explicit: a DiT. aided: one that uses what the fixed-point models use, such as an early head.

    results: one for each budget, with the solver and iterations that were best there. milliseconds: per image at each
    budget.
    """

    label: str
    explicit: bool
    parameters: int
    results: list[tuple[Results, str]]
    milliseconds: list[float]
    aided: bool = False

    def costs(self, unit: str) -> list[float]:
        """At each budget, in GFLOPs or ms per image."""
        return [found.gflops for found, _ in self.results] if unit == "GFLOPs" else self.milliseconds


def frontier(networks: list[Measured], budgets: tuple[int, ...], near: int, score: str, out: Path, name: str) -> str:
    """Tables and two pictures, <name>.png over GFLOPs and <name>-seconds.png over milliseconds per image.

    near: the budget at which memorisation and cost are reported. score: the name of the score. The tables after the
    first have the differences to the DiT that is best at each budget, over the seeds that both have, and the Pareto
    fronts.
    """
    rows = []
    for network in networks:
        middle = budgets.index(near)
        at = network.results[middle][0]
        rows.append([network.label, f"{network.parameters:,d}",
                     *(f"{spread(found.distances)} ({how})" for found, how in network.results),
                     f"{at.memorised.mean():.1%}", f"{at.gflops:.3f}",
                     f"{network.milliseconds[middle]:.1f}"])  # fmt: skip
    for unit, file in (("GFLOPs", name), ("ms", f"{name}-seconds")):
        series = []
        for network in networks:
            means = [float(found.distances.mean()) for found, _ in network.results]
            series.append(Series(network.label, network.costs(unit), means, network.explicit))
        plot_series(series, f"{unit} per image", score, out / f"{file}.png")
    passes = [f"{budget} passes" for budget in budgets]
    against = {"minus the best plain DiT": [each for each in networks if each.explicit and not each.aided]}
    if any(each.explicit and each.aided for each in networks):
        against["minus the best DiT"] = [each for each in networks if each.explicit]
    compared = [markdown_table([head, *passes], _differences(networks, opponents), 1)
                for head, opponents in against.items()]  # fmt: skip
    head = ["", "parameters", *passes, f"memorised at {near}", f"GFLOPs at {near}", f"ms at {near}"]
    return (
        f"![score over GFLOPs]({name}.png)\n\n![score over time]({name}-seconds.png)\n\n"
        f"{markdown_table(head, rows, 1)}\n\n" + "\n\n".join(compared) + "\n\n"
        "Pareto fronts of the mean scores: nothing else is as good for less, or better for as much.\n\n"
        f"{_front(networks, budgets, 'GFLOPs', score)}\n\n{_front(networks, budgets, 'ms', score)}"
    )


def _differences(networks: list[Measured], opponents: list[Measured]) -> list[list[str]]:
    """A row of each network that is no DiT: its difference to the best of the opponents at each budget."""
    best = [min((found for found, _ in each), key=lambda found: found.distances.mean())
            for each in zip(*(opponent.results for opponent in opponents), strict=True)]  # fmt: skip
    rows = []
    for network in networks:
        if not network.explicit:
            cells = []
            for (found, _), theirs in zip(network.results, best, strict=True):
                seeds = min(len(found.distances), len(theirs.distances))
                cells.append(", ".join(difference(found.distances[:seeds], theirs.distances[:seeds])))
            rows.append([network.label, *cells])
    return rows


class Point(NamedTuple):
    """A network at a budget. cost: in GFLOPs or ms per image. distance: the mean over its seeds."""

    label: str
    budget: int
    how: str
    cost: float
    distance: float


def pareto(points: list[Point]) -> list[Point]:
    """Those of which no other one has both at most the cost and at most the distance, and less of one; cheapest first.
    Points that are equal in both are all in it."""
    front = []
    for point in sorted(points, key=lambda point: (point.cost, point.distance)):
        last = front[-1] if front else None
        equal = last is not None and (last.cost, last.distance) == (point.cost, point.distance)
        if last is None or equal or point.distance < last.distance:
            front.append(point)
    return front


def _front(networks: list[Measured], budgets: tuple[int, ...], unit: str, score: str) -> str:
    points = [
        Point(network.label, budget, how, cost, float(found.distances.mean()))
        for network in networks
        for budget, (found, how), cost in zip(budgets, network.results, network.costs(unit), strict=True)
    ]
    rows = [[f"{point.label} ({point.how})", str(point.budget), f"{point.cost:.3g}", f"{point.distance:.2f}"]
            for point in pareto(points)]  # fmt: skip
    return markdown_table([f"front over {unit}", "passes", f"{unit} per image", score], rows, 1)
