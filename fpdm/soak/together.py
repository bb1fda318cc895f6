"""The same command twice on the same folder at once: the second one is refused or waits, and nothing mixes."""

import time
from pathlib import Path

from fpdm.soak.children import command, start
from fpdm.soak.ends import told
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round
from fpdm.soak.results import runs_alike
from fpdm.soak.whole import check, finish, uninterrupted
from fpdm.soak.work import Work


def play(works: dict[str, Work], material: Material, draw: Draws, folder: Path) -> Round:
    """The second one begins a little later."""
    name = draw.choice(list(works))
    work, later = works[name], draw.uniform(0, uninterrupted(name, works[name], material)["seconds"])
    words = work.words(material, folder)
    first = start(command(words), folder.with_suffix(".first.txt"), work.processes)
    time.sleep(later)
    met = not first.look()
    second = start(command(words), folder.with_suffix(".second.txt"), work.processes)
    ends = [children.wait(work.limit) for children in (first, second)]
    outcomes = [told(ended, work) for ended in ends]
    if "finished" not in outcomes:
        raise Lost(f"neither of them finished: {[ended.said[-800:] for ended in ends]}")
    check(work.intact, folder)
    check(runs_alike, folder)
    finish(name, work, material, folder)
    outcome = "both finished" if outcomes[0] == outcomes[1] else "one refused"
    return Round(name, outcome if met else f"one after the other: {outcome}", {"work": name, "later": later})
