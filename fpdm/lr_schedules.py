"""Learning rate schedules, by the names that settings give them: share of training done after warm-up, 0 to 1, -> share
of optim.lr. A new one is one more entry."""

import math
from collections.abc import Callable


def cooldown_share(done: float) -> float:
    """1 - sqrt(done): share of the rate during a cool-down, done 0 to 1 (Hägele et al., 2024, arXiv:2405.18392)."""
    return 1 - math.sqrt(done)


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
