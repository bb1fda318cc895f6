"""A folder of samples that was interrupted is that of an uninterrupted call."""

import pytest

from fpdm.loading import load_source
from fpdm.sampling.folder import sample_to_folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@pytest.mark.parametrize("lost", [[8], [0, 5], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_images_sampled_again_are_the_same_to_the_bit(tiny_run, tmp_path, lost):
    """The rounding of an image depends on the size of its batch, and the last batch is smaller."""
    settings = {"num_samples": 9, "batch_size": 4, "steps": 3, "iterations": 2}
    folder = sample_to_folder(load_source(tiny_run), tmp_path / "samples", **settings)
    whole = files(folder)
    for index in lost:
        (folder / f"{index:06d}.png").unlink()
    sample_to_folder(load_source(tiny_run), folder, **settings)
    assert files(folder) == whole
