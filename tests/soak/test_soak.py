"""scripts/soak.py: a few rounds of every experiment. What a full campaign found is in docs/reliability.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpdm.soak import campaign as campaigns
from fpdm.soak import report as reports
from fpdm.soak.campaign import Campaign
from fpdm.soak.disk import can_mount
from fpdm.soak.experiments import EXPERIMENTS
from fpdm.soak.kinds import KINDS
from fpdm.soak.outcome import Experiment, Lost, Round

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]
SHORT = {  # rounds of each experiment, and experiments that one process plays
    2: ("kill-training", "kill-preparation", "kill-sampling", "power", "failing-read", "signals"),
    1: ("full-disk", "clock", "neighbours", "two-commands", "long-training", "long-sampling"),
    len(KINDS): ("bad-input",),  # each kind once
}
MINUTES = {"kill-studies"}  # a round of it takes minutes; test_reproduce.py has a study stopped and resumed


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def soak(out: Path, *words) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--out", str(out), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)


def test_every_experiment_has_a_short_form():
    assert EXPERIMENTS.keys() - MINUTES == {name for names in SHORT.values() for name in names}


@pytest.mark.parametrize("rounds", SHORT)
def test_nothing_is_lost(out, rounds):
    if rounds == len(KINDS):
        pytest.importorskip("hypothesis")
    names = [name for name in SHORT[rounds] if name != "full-disk" or can_mount()]
    done = soak(out, "--experiments", ",".join(names), "--rounds", rounds, "--length", 200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for name in names:
        lines = [json.loads(line) for line in (out / "journals" / f"{name}.jsonl").read_text().splitlines()]
        assert [line["seed"] for line in lines] == list(range(rounds))
        assert name in (out / "report.md").read_text()
        assert all(line["commit"] for line in lines)
        assert not name.startswith("kill") or any(line["did"]["killed"] for line in lines)
    assert not list((out / "rounds").iterdir())


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """One whose experiment loses something in the round of seed 2, and fails in that of seed 4, until `mended`."""

    def play(material, draw, folder):
        (folder / "left").touch()
        if folder.name.endswith("-2") and not (tmp_path / "mended").exists():
            raise Lost("a weight is gone")
        if folder.name.endswith("-4"):
            raise KeyError("a fault of the campaign")
        return Round("a kind", "equal", {"drawn": draw.random(), "killed": 2})

    experiments = {"example": Experiment("an example", 5, play)}
    monkeypatch.setattr(campaigns, "EXPERIMENTS", experiments)
    monkeypatch.setattr(reports, "EXPERIMENTS", experiments)
    return Campaign(tmp_path, 0, None, 400)


def test_a_loss_ends_it_and_is_repeated_by_one_command(campaign, caplog, tmp_path):
    with caplog.at_level("INFO", "fpdm"):
        line = campaign.play("example", 5)
    assert line["seed"] == 2 and line["trouble"] == "a weight is gone"
    repeat = "python scripts/soak.py --experiments example --rounds 1 --seed 2 --length 400 --out"
    assert f"{repeat} {tmp_path}" in caplog.text
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["example-2"]
    assert "lost" in reports.report(campaign, "a command")


def test_a_loss_that_does_not_come_again_stays_in_the_report(campaign, tmp_path):
    campaign.play("example", 3)
    (tmp_path / "mended").touch()
    assert campaign.play("example", 3) is None
    told = reports.report(campaign, "a command")
    assert "| example | a kind | 1 | lost 1 time(s), then equal |" in told.replace("  ", " ")
    assert "| example | an example | 3 | 6 | 0 | 1 |" in told  # rounds, SIGKILLs, lost, lost and then passed
    assert "`a command`" in told and campaign.commit in told


def test_another_error_is_in_the_journal_too(campaign, tmp_path):
    (tmp_path / "mended").touch()
    line = campaign.play("example", None)
    assert line["seed"] == 4 and "a fault of the campaign" in campaign.lines("example")[-1]["trouble"]


def test_a_report_tells_of_several_states_of_the_code(campaign, monkeypatch, tmp_path):
    campaign.play("example", 1)
    monkeypatch.setattr(campaigns, "state_of_code", lambda: ("another commit", "other"))
    other = Campaign(tmp_path, 0, None, 400)
    assert other.material.folder != campaign.material.folder  # what is compared was made by the same code
    other.play("example", 2)
    told = reports.report(other, "a command")
    assert "Several states of the code" in told and "another commit" in told


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
