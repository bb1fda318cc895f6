"""Trainings that diverge: a study goes on without them; other failures stop it."""

import json

import pytest

from fpdm import cli
from fpdm.reproduction import trainings
from fpdm.reproduction.contest import last_loss
from fpdm.reproduction.trainings import Training, Trainings
from fpdm.training.loop import TrainingDiverged

RUNS = [Training("good", 5, ()), Training("bad-0.004", 5, ())]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """In place of train.py: one of the runs diverges. Returns the names that were started."""
    started = []

    def run_scripts(tasks, at_once, deadline):
        for task in tasks:
            started.append(task.log.stem)
            assert task.bears == TrainingDiverged.exit_status
            task.log.write_text("$ python\nerror: 10 steps in a row had gradients that are not finite\n")
        return [task for task in tasks if task.log.stem.startswith("bad")]

    monkeypatch.setattr(trainings, "run_scripts", run_scripts)
    monkeypatch.setattr(Trainings, "find", lambda self, name: self.runs / f"000-{name}")
    monkeypatch.setattr(trainings, "finished_run", lambda runs, name, steps: None)
    return Trainings(tmp_path, 1, None), started


def test_what_diverged_is_noted_and_not_started_again(study, tmp_path):
    made, started = study
    for _ in range(2):
        assert made.attempt(RUNS) == [tmp_path / "runs" / "000-good", None]
    assert started == ["good", "bad-0.004", "good"]
    note = json.loads((tmp_path / "diverged" / "bad-0.004.json").read_text())
    assert note == {"steps": 5, "said": "error: 10 steps in a row had gradients that are not finite"}
    made.attempt([RUNS[1]._replace(steps=6)])  # another training
    assert started[-1] == "bad-0.004"


def test_a_training_that_must_not_diverge(study):
    made, _ = study
    assert len(made.train(RUNS[:1])) == 1
    with pytest.raises(ValueError, match=r"bad-0\.004: the training diverged; .*diverged says how"):
        made.train(RUNS)


def test_the_last_loss(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "val_loss": 0.5}\n{"step": 2}\n{"step": 3, "val_loss": NaN}\n')
    assert last_loss(tmp_path) == last_loss(None) == float("inf")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "val_loss": 0.5}\n{"step": 2}\n')
    assert last_loss(tmp_path) == 0.5


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingDiverged("3 steps in a row"), 4), (ValueError("no"), 2), (OSError("disk"), 2)]
)
def test_only_divergence_has_a_status_of_its_own(error, status, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == status and str(error) in capsys.readouterr().err
