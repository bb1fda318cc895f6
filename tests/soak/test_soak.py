"""scripts/soak.py: a few rounds of every experiment. What a full campaign found is in docs/reliability.md."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fpdm.soak import campaign as campaigns
from fpdm.soak.campaign import Campaign
from fpdm.soak.experiments import EXPERIMENTS
from fpdm.soak.faults import can_mount
from fpdm.soak.long_runs import slope_of
from fpdm.soak.moments import Operation
from fpdm.soak.outcome import Experiment, Lost, Round
from fpdm.soak.power import Entry, Moment, Record

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]
SHORT = {  # rounds of each experiment, and experiments that one process plays
    2: ("kill-training", "kill-preparation", "kill-sampling", "power", "failing-read", "signals"),
    1: ("full-disk", "clock", "neighbours", "two-commands", "long-training", "long-sampling"),
    16: ("bad-input",),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def soak(out: Path, *words) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--out", str(out), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)


def test_every_experiment_has_a_short_form():
    """But one, of minutes: test_reproduce.py and test_benchmark.py stop and resume these commands."""
    assert EXPERIMENTS.keys() - {name for names in SHORT.values() for name in names} == {"kill-studies"}


@pytest.mark.parametrize("rounds", SHORT)
def test_nothing_is_lost(out, rounds):
    if rounds == 16:
        pytest.importorskip("hypothesis")
    names = [name for name in SHORT[rounds] if name != "full-disk" or can_mount()]
    done = soak(out, "--experiments", ",".join(names), "--rounds", rounds, "--length", 200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for name in names:
        lines = [json.loads(line) for line in (out / "journals" / f"{name}.jsonl").read_text().splitlines()]
        assert [line["seed"] for line in lines] == list(range(rounds))
        assert name in (out / "report.md").read_text()
    assert not list((out / "rounds").iterdir())


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """One whose experiment loses something in the round of seed 2."""

    def play(material, draw, folder):
        (folder / "left").touch()
        if folder.name.endswith("-2"):
            raise Lost("a weight is gone")
        return Round("a kind", "equal", {"drawn": draw.random()})

    monkeypatch.setattr(campaigns, "EXPERIMENTS", {"example": Experiment("an example", 5, play)})
    return Campaign(tmp_path, 0, None, 400)


def test_a_loss_ends_it_and_is_repeated_by_one_command(campaign, caplog, tmp_path):
    with caplog.at_level("INFO", "fpdm"):
        line = campaign.play("example", 5)
    assert line["seed"] == 2 and line["trouble"] == "a weight is gone"
    assert "python scripts/soak.py --experiments example --rounds 1 --seed 2" in caplog.text
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["example-2"]
    assert "lost" in campaign.report()


def test_a_campaign_resumes_and_a_round_repeats(campaign, tmp_path):
    assert campaign.play("example", 2) is None
    before = campaign.lines("example")
    with campaign.journal("example").open("a") as file:
        file.write('{"seed": 1, "ki')  # what a kill has cut short
    assert campaign.play("example", 2) is None
    assert campaign.lines("example") == before
    other = Campaign(tmp_path / "other", 1, None, 400)
    assert other.play("example", 1) is None
    assert other.lines("example")[0]["did"] == before[1]["did"]


def test_no_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(campaigns, "EXPERIMENTS", {"example": Experiment("an example", 1, None)})
    assert Campaign(tmp_path, 0, -1.0, 400).play("example", 1) is None


def record(tmp_path, *moments: tuple) -> Record:
    """A record of operations, each (name, path, before, tree)."""
    place = tmp_path / "place"
    (place / "blobs").mkdir(parents=True)
    for content in ("old", "new content"):
        (place / "blobs" / content).write_text(content)
    (place / "record.jsonl").touch()
    found = Record(place, Path("/run"))
    found.moments = [
        Moment(Operation(name, path, before), {where: Entry(*entry) for where, entry in tree.items()})
        for name, path, before, tree in moments
    ]
    return found


def states(found: Record, tmp_path) -> set:
    """What the disk may hold after the last moment, over many draws: the content of `a`, None if it is not there."""
    contents = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        found.restore(folder, len(found.moments) - 1, Random(seed))
        contents.add((folder / "a").read_text() if (folder / "a").exists() else None)
    return contents


A, B = {"a": ("file", 1, "old")}, {"a": ("file", 1, "old"), "b": ("file", 2, "new content")}
RENAMED = {"a": ("file", 2, "new content")}
SYNCED = [("fsync", "/run/a", False, A), ("fsync", "/run", False, A)]


def test_a_rename_without_syncs_may_lose_everything(tmp_path):
    found = states(
        record(tmp_path, *SYNCED, ("os.rename", "/run/b", True, B), ("open", "/run/c", True, RENAMED)), tmp_path
    )
    assert {"old", "", "new content"} <= found and any(text not in ("old", "new content") for text in found if text)


def test_a_synced_file_is_old_or_new(tmp_path):
    synced = ("fsync", "/run/b", False, B)
    found = record(tmp_path, *SYNCED, synced, ("os.rename", "/run/b", True, B), ("open", "/run/c", True, RENAMED))
    assert states(found, tmp_path) == {"old", "new content"}


def test_a_synced_name_is_new(tmp_path):
    after = [("fsync", "/run/b", False, B), ("fsync", "/run", False, RENAMED)]
    assert states(record(tmp_path, *SYNCED, *after), tmp_path) == {"new content"}


def test_slopes():
    """The error is that of a textbook: for residuals e, sqrt(e.e / (n - 2) / sum of squares of x)."""
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert slope_of(x, 2 * x + 1) == (pytest.approx(2), pytest.approx(0))
    slope, error = slope_of(x, np.array([0.0, 1.0, 0.0, 1.0]))
    assert slope == pytest.approx(0.2) and error == pytest.approx(np.sqrt(0.8 / 2 / 5))
