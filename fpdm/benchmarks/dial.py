"""How fast the page of scripts/demo.py answers: from a moved control to the HTML that the browser gets."""

from itertools import product

import fpdm
from fpdm.benchmarks.timing import Bench, Question, alternate
from fpdm.demo.drawing import draw
from fpdm.demo.markup import results
from fpdm.demo.models import open_models, released
from fpdm.demo.request import RANDOM, Bounds, Shared, Way, ask
from fpdm.evaluation.tables import markdown_table

IMAGES = 16


def dial(budgets: tuple[int, ...], iterations: int) -> Question:
    """The released models at these budgets. iterations: per timestep, for an FPDM."""
    cases = [{"model": m, "budget": b, "iterations": iterations} for m, b in product(released(), budgets)]
    return Question("The page", cases, measure, table)


def measure(bench: Bench, model: str, budget: int, iterations: int) -> dict:
    models = open_models([model])
    (name,) = models
    way = Way(name, iterations, "constant", models[name].source.reuses(None), 1.0, "ddim", 1.0)
    asked = ask(models, Shared(RANDOM, IMAGES, 0, budget), way, Bounds(IMAGES, budget, iterations))
    drawn = draw(asked, lambda done, of: None)
    settings = {"budget": budget, "iterations": asked.config.iterations}
    works = {
        "answer": lambda: results([draw(asked, lambda done, of: None)]),
        "sampling": lambda: fpdm.sample(asked.offered.source, IMAGES, **settings),
        "html": lambda: results([drawn]),
    }
    times = alternate(bench, works)
    return {f"{part}_s": times[part].median for part in works} | {
        "slowest_s": times["answer"].most,
        "timesteps": len(drawn.plan.steps),
        "kilobytes": len(results([drawn])) / 1024,
    }


def table(rows: list[dict]) -> str:
    head = ["", "budget", "timesteps", "answer, s", "slowest answer, s", "of it sampling, s", "HTML, s", "HTML, KiB"]
    body = [
        [row["model"], str(row["budget"]), str(row["timesteps"]), f"{row['answer_s']:.2f}", f"{row['slowest_s']:.2f}",
         f"{row['sampling_s']:.2f}", f"{row['html_s']:.3f}", f"{row['kilobytes']:.0f}"]
        for row in rows
    ]  # fmt: skip
    return (
        f"{IMAGES} images, DDIM with reuse, {rows[0]['iterations']} iterations per timestep. The answer is the time "
        "from a moved control to the HTML: sampling with residuals, the filmstrip, and PNGs, all in the HTML.\n\n"
        f"{markdown_table(head, body, 1)}"
    )
