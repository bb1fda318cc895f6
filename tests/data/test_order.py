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
