import numpy as np
import pytest

from fpdm.data.order import batch_indices


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (10, 10), (7, 16), (24, 5)])
def test_every_epoch_sees_every_record_once(count, batch):
    seen = np.concatenate([batch_indices(0, step, batch, count) for step in range(3 * count)])
    epochs = seen[: len(seen) // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_is_a_function_of_seed_and_step():
    assert np.array_equal(batch_indices(1, 9, 8, 100), batch_indices(1, 9, 8, 100))
    assert not np.array_equal(batch_indices(1, 9, 8, 100), batch_indices(2, 9, 8, 100))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("start", [0, 5])
def test_ranks_together_see_every_record_once_per_epoch(ranks, start):
    """Each rank takes its rows of the global batch; also when a run continues at step 5, in the middle of an epoch."""
    count, batch = 100, 24  # 24 is a multiple of every number of ranks, and no divisor of 100
    share = batch // ranks
    steps = [batch_indices(0, step, batch, count) for step in range(start, 50)]
    rows = [[indices[rank * share : (rank + 1) * share] for indices in steps] for rank in range(ranks)]
    seen = np.stack([np.concatenate(step) for step in zip(*rows, strict=True)]).reshape(-1)
    first = -start * batch % count  # where the first whole epoch begins
    epochs = seen[first : first + (len(seen) - first) // count * count].reshape(-1, count)
    assert len(epochs) >= 10 and (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len(set(seen[:first])) == first  # nor is one seen twice in what is left of the epoch before
    alone = np.concatenate([batch_indices(0, step, batch, count) for step in range(50)])
    assert np.array_equal(alone[start * batch :], seen)
