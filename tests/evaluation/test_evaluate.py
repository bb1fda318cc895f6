"""Scoring from Python: as the script scores, on several processes as on one, with what a fork adds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fpdm
from fpdm.commands.evaluate import Settings, main
from fpdm.config import ScoringConfig
from fpdm.data.images import open_images
from fpdm.evaluation.evaluate import make_reference, self_test
from fpdm.evaluation.features import EXTRACTORS, Features
from fpdm.evaluation.scores import METRICS

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]


class Averages(torch.nn.Module):
    """Twelve averages of an image, as features of Inception's kinds: an extractor that is quick."""

    name = "averages"

    def features(self, images):
        means = images.float().flatten(1).unflatten(1, (12, -1)).mean(-1)
        return Features(means, means[:, :5], means / 40)


def open_averages(config, reference, resolution):
    return Averages(), "key"


@pytest.fixture
def averages(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "averages", open_averages)
    return "averages"


@pytest.fixture
def sets(tmp_path):
    """53 samples and 40 images of a reference, 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    for name, count in (("samples", 53), ("reference", 40)):
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
    return tmp_path / "samples.npz", tmp_path / "reference.npz"


@pytest.fixture(scope="module")
def digits():
    """A part of the digits as an array (N, 8, 8, 3)."""

    def part(name: str) -> np.ndarray:
        images = open_images(f"digits@{name}")
        return np.stack([np.array(images.load(i)) for i in range(len(images))])

    return part


def mean_gap(samples, reference, scoring):
    return {"mean_gap": float(abs(samples.pool.mean - reference.pool.mean).mean())}


def test_a_metric_of_a_fork_is_in_the_result(sets, averages, tmp_path, monkeypatch):
    before = fpdm.evaluate(*sets, features=averages, cache=tmp_path / "a", bootstrap=3)
    names = ["FD-averages@53", "FD-averages@53_std", "sFID@53", "IS", "IS_std", "noise_floor", "kid", "kid_std",
             "precision", "recall"]  # fmt: skip
    facts = ["images", "reference_images", "resolution", "extractor", "settings", "sampling"]
    assert [name for name in before if name in names + facts] == names + facts and not list(tmp_path.glob("score*"))
    monkeypatch.setitem(METRICS, "mean gap", mean_gap)
    monkeypatch.setitem(METRICS, "does not apply", lambda samples, reference, scoring: {})
    after = fpdm.evaluate(*sets, features=averages, cache=tmp_path / "a", bootstrap=3)
    expected = [*names, "mean_gap", *facts]
    assert [name for name in after if name in expected] == expected and after.pop("mean_gap") > 0
    assert after == before


def test_python_and_the_script_give_the_same(sets, averages, tmp_path, monkeypatch):
    out, cache = tmp_path / "python" / "score.json", str(tmp_path / "cache")
    result = fpdm.evaluate(*sets, features=averages, cache=cache, keep=20, out=out)
    assert json.loads(out.read_text()) == result
    assert (result["images"], result["reference_images"], result["resolution"]) == (53, 40, 8)
    assert result["settings"]["keep"] == 20 and result["settings"]["samples"] == str(sets[0])
    words = ["--samples", sets[0], "--reference", sets[1], "--features", averages, "--cache", cache, "--keep", 20]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    main()
    assert json.loads((tmp_path / "score-averages.json").read_text()) == result


def test_samples_beside_held_out_images(averages, tmp_path, digits):
    """Copies of what was trained on are found out; held-out images, taken for samples, are not."""
    for part in ("training", "held-out"):
        np.savez(tmp_path / f"{part}.npz", digits(part))
    settings = {"features": averages, "cache": tmp_path / "cache", "held_out": "digits@held-out"}
    copies = fpdm.evaluate(tmp_path / "training.npz", "digits@training", **settings)
    assert (copies["images"], copies["reference_images"]) == (1632, 1632)
    assert copies["nearest"] == 0 and copies["memorised"] == 1 and copies["nearest_held_out"] > 0
    honest = fpdm.evaluate(tmp_path / "held-out.npz", "digits@training", **settings)
    assert honest["nearest"] == honest["nearest_held_out"] == copies["nearest_held_out"]
    assert honest["memorised"] == pytest.approx(0.01, abs=0.005)  # 2 of 165 images are below the quantile
    assert honest["settings"]["held_out"] == "digits@held-out"
    without = fpdm.evaluate(tmp_path / "training.npz", "digits@training", **{**settings, "held_out": None})
    assert not {"nearest", "nearest_held_out", "memorised"} & without.keys()
    with pytest.raises(FileNotFoundError, match="held_out absent does not exist"):
        fpdm.evaluate(tmp_path / "training.npz", "digits@training", **{**settings, "held_out": "absent"})
    with pytest.raises(ValueError, match="digits has no part 'test'"):
        fpdm.evaluate(tmp_path / "training.npz", "digits@test", features=averages, cache=tmp_path / "cache")


def test_parts_of_a_source_are_not_taken_for_each_other(averages, tmp_path, digits):
    """They have the same path; the features that are kept must not be those of another part."""
    np.savez(tmp_path / "samples.npz", digits("held-out"))
    counts = {}
    for source in ("digits", "digits@training", "digits@held-out"):
        scores = fpdm.evaluate(tmp_path / "samples.npz", source, features=averages, cache=tmp_path / "cache")
        counts[source] = (scores["reference_images"], scores["FD-averages@165"])
    assert [count for count, _ in counts.values()] == [1797, 1632, 165]
    assert abs(counts["digits@held-out"][1]) < 1e-6 < counts["digits"][1] < counts["digits@training"][1]


WORKER = """
import functools, json, sys
from pathlib import Path
import fpdm
from accelerate import PartialState
import fpdm.evaluation.evaluate as module
from fpdm.evaluation.features import EXTRACTORS
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_evaluate import open_averages
EXTRACTORS["averages"] = open_averages
module.gather = functools.partial(module.gather, chunk=10)  # so that both processes have some of the 53 images
folder = Path(sys.argv[2])
result = fpdm.evaluate(folder / "samples.npz", folder / "reference.npz", features="averages", bootstrap=3, batch_size=4,
                       cache=folder / "two", out=folder / "two.json")
result["refused"] = ""
try:
    fpdm.evaluate(folder / "few.npz", folder / "reference.npz", features="averages", cache=folder / "few")
except ValueError as error:  # the main process finds it, and all processes raise it
    result["refused"] = str(error)
(folder / f"rank-{PartialState().process_index}.json").write_text(json.dumps(result))
"""


def test_two_processes_return_what_one_returns(sets, averages, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    np.savez(tmp_path / "few.npz", np.zeros((3, 8, 8, 3), np.uint8))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "worker.py"), __file__, str(tmp_path)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / name).read_text()) for name in ("rank-0.json", "rank-1.json", "two.json")]
    assert [r.pop("refused") for r in results[:2]] == ["3 images: precision and recall need 4"] * 2
    assert results[0] == results[1] == results[2]
    one = fpdm.evaluate(*sets, features=averages, bootstrap=3, cache=tmp_path / "one")
    assert list(one) == list(results[0])
    for name, value in one.items():
        if isinstance(value, float):
            assert results[0][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_reference_file_and_self_test_from_python(sets, averages, tmp_path):
    settings = {"features": averages, "cache": tmp_path / "cache"}
    assert make_reference(sets[1], tmp_path / "r.npz", resolution=8, **settings) == 40
    images, file = (fpdm.evaluate(sets[0], source, **settings) for source in (sets[1], tmp_path / "r.npz"))
    assert file["FD-averages@53"] == pytest.approx(images["FD-averages@53"]) and file["recall"] == images["recall"]
    checks = self_test(sets[1], resolution=8, **settings)
    assert len(checks) == 7 and all(check.passed for check in checks)


def test_tf32_is_left_as_the_caller_had_it(sets, averages, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        fpdm.evaluate(*sets, features=averages, cache=tmp_path / "cache", tf32=False)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("says", "samples", "settings"),
    [
        ("samples is not set", "", {}),
        ("samples nowhere does not exist", "nowhere", {}),
        ("resolution=8 with samples", "samples.npz", {"resolution": 8}),
        ("features='vgg': choose one of inception, dinov2, dinov2-s, cnn", "samples.npz", {"features": "vgg"}),
        ("batch_size=0: at least 1", "samples.npz", {"batch_size": 0}),
        ("bootstrap=1: a standard deviation", "samples.npz", {"bootstrap": 1}),
    ],
)
def test_mistakes_are_refused_as_by_the_script(sets, monkeypatch, says, samples, settings):
    monkeypatch.chdir(sets[0].parent)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        fpdm.evaluate(samples, "reference.npz", **settings)
    assert "\n" not in str(error.value)


def test_one_thing_at_a_time():
    for words in ({"samples": "s", "self_test": True}, {"make_reference": "r.npz", "samples": "s"}):
        with pytest.raises(ValueError, match="only one of them is possible"):
            Settings(**words)
    with pytest.raises(ValueError, match="its classifier needs the images"):
        make_reference("digits", "r.npz", features="cnn", resolution=16)
    with pytest.raises(ValueError, match="resolution is not set"):
        self_test("digits")
    with pytest.raises(ValueError, match="held_out=digits@held-out without samples: there is nothing to compare"):
        self_test("digits", held_out="digits@held-out", resolution=8)


def test_held_out_images_beside_statistics_alone(sets, averages, tmp_path, monkeypatch):
    """ADM's form without images, which has no nearest ones."""
    monkeypatch.setattr(Averages, "name", "inception")  # whose statistics these files hold
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(12), sigma=np.eye(12))
    settings = {"features": averages, "cache": tmp_path / "cache", "held_out": sets[1]}
    with pytest.raises(ValueError, match="which holds statistics alone: distances to the nearest"):
        fpdm.evaluate(sets[0], tmp_path / "statistics.npz", **settings)


def test_an_extractor_of_a_fork_is_named_in_help_and_errors(monkeypatch):
    from fpdm.commands.evaluate import parser

    monkeypatch.setitem(EXTRACTORS, "averages", open_averages)
    assert "averages" in parser().format_help()
    with pytest.raises(ValueError, match=r"choose one of inception, .*, averages"):
        fpdm.evaluate("digits", "digits", features="vgg")
    assert ScoringConfig().features in EXTRACTORS
