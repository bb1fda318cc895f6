"""The order of the records in training: a pure function of (seed, epoch), and so of (seed, step)."""

from functools import lru_cache

import numpy as np

from fpdm.seeding import key


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` records in one epoch."""
    return np.random.Generator(np.random.Philox(key("order", seed, epoch))).permutation(count)


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Records (batch_size,) of training step `step`.

    Steps run through the epochs without a gap: a batch may end one epoch and begin the next.
    Each epoch contains every record exactly once.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, count)
    return np.concatenate([permutation(seed, int(e), count)[offsets[epochs == e]] for e in np.unique(epochs)])
