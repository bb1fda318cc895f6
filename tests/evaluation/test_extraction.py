"""Features of a whole set: whatever the batches and chunks, after interruptions, on several processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import PartialState

from fpdm.evaluation.extraction import RESULT, gather
from fpdm.evaluation.features import Features, Inception
from fpdm.evaluation.samples import Samples

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]


class Averages:
    """Eight averages of an image: an extractor that is quick."""

    name = "averages"

    def __init__(self, fail_at: int | None = None):
        self.calls, self.fail_at = 0, fail_at

    def features(self, images):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        means = images.float().flatten(1).unflatten(1, (8, -1)).mean(-1)
        return Features(means, means[:, :3], means / 40)


def whole(source) -> np.ndarray:
    return torch.cat([Averages().features(batch).pool for batch in Samples(source).batches(5)]).double().numpy()


@pytest.fixture
def npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (53, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images)
    return str(tmp_path / "samples.npz")


def check(gathered, source, kept):
    features = whole(source)
    np.testing.assert_allclose(gathered.pool.mean, features.mean(0))
    np.testing.assert_allclose(gathered.pool.covariance, np.cov(features.T), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gathered.spatial.covariance, np.cov(features[:, :3].T), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gathered.kept.numpy(), features[kept].astype(np.float32))
    assert gathered.inception_score[0] >= 1


@pytest.mark.parametrize(("batch", "chunk", "keep"), [(4, 10, 50_000), (64, 4096, 20), (7, 1, 5)])
def test_all_images_count_once(npz, tmp_path, batch, chunk, keep):
    gathered = gather(Samples(npz), Averages(), tmp_path / "f", PartialState(cpu=True), batch_size=batch, chunk=chunk,
                      keep=keep)  # fmt: skip
    kept = np.unique(np.linspace(0, 52, min(keep, 53)).round().astype(int))
    check(gathered, npz, kept)
    assert {p.name for p in (tmp_path / "f").iterdir()} == {RESULT, "kept.f32"}
    again = gather(Samples(npz), Averages(fail_at=1), tmp_path / "f", PartialState(cpu=True), keep=keep)  # nothing left
    np.testing.assert_array_equal(again.pool.mean, gathered.pool.mean)


@pytest.mark.parametrize("stopped_at", [1, 4, 9, 13])
def test_gone_on_with_after_an_interruption(npz, tmp_path, stopped_at):
    state, settings = PartialState(cpu=True), {"batch_size": 4, "chunk": 12}
    with pytest.raises(KeyboardInterrupt):
        gather(Samples(npz), Averages(stopped_at), tmp_path / "f", state, **settings)
    rest = Averages()
    gathered = gather(Samples(npz), rest, tmp_path / "f", state, **settings)
    check(gathered, npz, np.arange(53))
    assert rest.calls == 14 - 3 * ((stopped_at - 1) // 3)  # whole chunks are not done again


WORKER = """
import sys
from pathlib import Path
from unittest.mock import Mock
from accelerate import PartialState
from fpdm.evaluation.extraction import gather
from fpdm.evaluation.samples import Samples
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_extraction import Averages
gather(Samples(sys.argv[2]), Averages(), Path(sys.argv[3]), PartialState(cpu=True), batch_size=4, chunk=5)
"""


def test_two_processes_and_what_one_had_begun(npz, tmp_path):
    """Interrupted on one process, finished on two."""
    with pytest.raises(KeyboardInterrupt):
        gather(Samples(npz), Averages(5), tmp_path / "f", PartialState(cpu=True), batch_size=4, chunk=5)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "worker.py"), __file__, npz, str(tmp_path / "f")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    check(gather(Samples(npz), Averages(1), tmp_path / "f", PartialState(cpu=True)), npz, np.arange(53))


def test_a_set_that_changed_has_another_fingerprint(npz, image_folder, tmp_path):
    before = Samples(npz).fingerprint()
    assert before == Samples(npz).fingerprint() != Samples(str(image_folder), 16).fingerprint()
    assert Samples(str(image_folder), 16).fingerprint() != Samples(str(image_folder), 8).fingerprint()
    os.utime(npz, ns=(1, 1))
    assert Samples(npz).fingerprint() != before


def test_inceptions_three_kinds_of_features(inception_weights):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inception, seen = Inception(str(inception_weights)), []
    inception.network.Mixed_6d.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    features = inception.features(images)
    assert (features.pool.shape, features.spatial.shape, features.logits.shape) == ((3, 2048), (3, 2023), (3, 1008))
    # The 1x1 branch comes first in the layer's output, and sees what the layer sees.
    given, out = seen[0]
    torch.testing.assert_close(features.spatial, out[:, :7].flatten(1))
    torch.testing.assert_close(features.spatial, inception.network.Mixed_6d.branch1x1(given)[:, :7].flatten(1))
    assert not inception.network.Mixed_6d.branch1x1._forward_hooks


def test_damaged_files_are_named(npz, tmp_path, monkeypatch):
    state = PartialState(cpu=True)
    with pytest.raises(KeyboardInterrupt):
        gather(Samples(npz), Averages(9), tmp_path / "f", state, batch_size=4, chunk=12)
    path = tmp_path / "f" / "rank-0000.npz"
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    for change, says in (({"chunks": None}, "chunks is missing"), ({"pool.total": None}, r"pool\.total is missing"),
                         ({"pool.products": np.zeros(3)}, "with products"), ({"pool.count": np.array("a")}, "count is"),
                         ({"chunks": np.array(["a"])}, "chunks is missing, or no list")):  # fmt: skip
        np.savez(path, **{name: value for name, value in (arrays | change).items() if value is not None})
        with pytest.raises(ValueError, match=rf"rank-0000\.npz is damaged \(.*{says}.*remove the folder"):
            gather(Samples(npz), Averages(), tmp_path / "f", state, batch_size=4, chunk=12)
    entry = whole.rindex(b"PK\1\2")  # where the last array is, as the list at the end says
    for damage in (whole[:100], whole[: entry + 42] + b"\xff\xff\xff\xff" + whole[entry + 46 :]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"rank-0000\.npz is damaged .*remove the folder"):
            gather(Samples(npz), Averages(), tmp_path / "f", state, batch_size=4, chunk=12)
    path.write_bytes(whole)
    monkeypatch.setattr(np, "load", Mock(side_effect=OSError(errno.EINVAL, "Invalid argument")))  # zipfile's own
    with pytest.raises(ValueError, match=r"rank-0000\.npz is damaged .*remove the folder"):
        gather(Samples(npz), Averages(), tmp_path / "f", state, batch_size=4, chunk=12)
