"""How a command may end: it finishes, or says in one line why not."""

from fpdm.soak.children import HUNG, Ended
from fpdm.soak.outcome import Lost
from fpdm.soak.work import Work

LOST_NEIGHBOUR = 3


def told(ended: Ended, work: Work) -> str:
    """`finished` or `refused in one line`; Lost unless it was one of them.

    Each of several processes may say its line. A study passes on the line of the command that it ran, and says its own.
    """
    if HUNG in ended.statuses:
        raise Lost(f"it hangs: {ended.said[-1500:]}")
    if ended.well and "Traceback" not in ended.said:
        return "finished"
    failed = [status for status in ended.statuses if status]
    few = len(ended.errors) == len(failed) if not work.family else len(ended.errors) >= 1
    well_told = few and "Traceback" not in ended.said and 2 in failed and set(failed) <= {2, LOST_NEIGHBOUR}
    if not well_told:
        raise Lost(f"not one line: {ended.statuses} {ended.said[-2500:]}")
    return "refused in one line"
