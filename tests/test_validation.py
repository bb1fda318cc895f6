"""The distance of sampled images while a model trains: that of sample.py and evaluate.py, on one process or several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import fpdm
from fpdm.commands import train
from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, ValidationConfig
from fpdm.evaluation.classifier import ClassifierFacts, ResidualClassifier
from fpdm.models import build_model, load_pretrained
from fpdm.training.checkpoint import find_checkpoint
from fpdm.validation import SampledDistance

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Features are kept in results/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def classifier(tmp_path) -> str:
    """The folder of an untrained one."""
    torch.manual_seed(0)
    ResidualClassifier(ClassifierFacts("made", 16, [8, 8, 12], ["ant", "bee", "cow"])).save(tmp_path / "classifier")
    return str(tmp_path / "classifier")


@pytest.fixture
def experiment(classifier, image_folder, tiny_store):
    def make(model="FPDM-XS/2", **settings) -> ExperimentConfig:
        given = {"reference": str(image_folder), "features": "classifier", "weights": classifier, "samples": 22,
                 "budget": 24, "iterations": [1, 3], "batch_size": 5, **settings}  # fmt: skip
        return ExperimentConfig(
            model=ModelConfig(name=model, hidden_size=32, num_heads=2),
            data=DataConfig(latents=str(tiny_store)),
            validation=ValidationConfig(**given),
        )

    return make


def test_the_distance_is_that_of_the_commands(experiment, tiny_run, image_folder, classifier):
    """By way of PNG files, and in batches of another size."""
    model = load_pretrained(find_checkpoint(tiny_run) / "ema")
    measure = SampledDistance(experiment())
    found = measure(model)
    expected, source = {}, fpdm.load_source(tiny_run)
    for k in (1, 3):
        fpdm.sample_to_folder(source, f"samples-{k}", num_samples=22, budget=24, iterations=k, sampler="ab2")
        scores = fpdm.evaluate(f"samples-{k}", image_folder, features="classifier", classifier=classifier)
        expected[f"val_fd_{k}it"] = scores["FD-made@22"]
    assert expected["val_fd_1it"] != pytest.approx(expected["val_fd_3it"], rel=1e-3)
    assert found == pytest.approx({"val_fd": min(expected.values()), **expected}, rel=1e-3)
    assert measure(model) == found  # the same noise each time


def test_a_dit_has_one_distance(experiment):
    measure = SampledDistance(experiment("DiT-XS/2"))
    model = build_model("DiT-XS/2", input_size=8, in_channels=4, num_classes=3, hidden_size=32, num_heads=2).eval()
    assert list(measure(model)) == ["val_fd"]


WORKER = """
import json, sys
from accelerate import PartialState
from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, ValidationConfig
from fpdm.data.latents import LatentStore
from fpdm.processes import Diffusion
from fpdm.models import load_pretrained
from fpdm.training.checkpoint import find_checkpoint
from fpdm.training.validation import HeldOut
from fpdm.validation import SampledDistance
latents, run, validation, out = sys.argv[1:]
config = ExperimentConfig(
    model=ModelConfig(name="FPDM-XS/2", hidden_size=32, num_heads=2),
    data=DataConfig(latents=latents), validation=ValidationConfig(**json.loads(validation)),
)
measure, state = SampledDistance(config), PartialState()
model = load_pretrained(find_checkpoint(run) / "ema")
found = HeldOut(config, LatentStore(latents).manifest, Diffusion(), state).loss(model) | measure(model)
with open(f"{out}-{state.process_index}.json", "w") as file:
    json.dump(found, file)
"""


def test_two_processes_measure_what_one_measures(experiment, tiny_store, tiny_run, held_out_store, tmp_path):
    """The batches are shared: 3 of the loss, and 5 of images, so that one process has more than the other."""
    (tmp_path / "worker.py").write_text(WORKER)
    config = experiment(latents=str(held_out_store))
    arguments = [str(tmp_path / "worker.py"), str(tiny_store), str(tiny_run), json.dumps(vars(config.validation))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run([sys.executable, *launcher, *arguments, str(tmp_path / f"of-{processes}")], cwd=tmp_path,
                              capture_output=True, text=True, timeout=300, env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("of-1-0.json", "of-2-0.json", "of-2-1.json"))
    assert two[0] == two[1] and {"val_loss", "val_loss_t1", "val_fd", "val_fd_3it"} <= one.keys()
    assert two[0] == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--validation.budget", 4], "validation: budget=4 does not hold one timestep of 5 block passes"),
        (["--validation.features", "inceptoin"], r"validation\.features='inceptoin': choose one of inception"),
        (["--validation.features", "cnn"], r"validation\.weights=.* with validation\.features=cnn, which has no file"),
        (["--validation.weights", "absent"], r"classifier absent: no config\.json in it"),
        (["--validation.reference", "absent"], "absent does not exist"),
        (["--validation.sampler", "rk4"], "validation: sampler='rk4': choose one of"),
    ],
)
def test_mistakes_are_told_before_training(experiment, words, says, monkeypatch, tmp_path):
    config = experiment()
    given = {"model.name": "FPDM-XS/2", "model.hidden_size": 32, "model.num_heads": 2, "run.validate_every": 2,
             "data.latents": config.data.latents, "optim.steps": 2}  # fmt: skip
    given |= {f"validation.{name}": value for name, value in vars(config.validation).items() if value is not None}
    line = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["train.py", *line, *map(str, words)])
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train.main()
    assert not list(tmp_path.glob("results/0*"))


def test_the_command_measures_and_forks(experiment, monkeypatch, held_out_store):
    """train.py with both measures; then its fork."""
    config = experiment(latents=str(held_out_store), iterations=[2])
    given = {"model.name": "FPDM-XS/2", "model.hidden_size": 32, "model.num_heads": 2, "run.validate_every": 2,
             "data.latents": config.data.latents, "optim.batch_size": 8, "run.keep_best": "true"}  # fmt: skip
    given |= {f"validation.{name}": value for name, value in vars(config.validation).items() if value is not None}
    line = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    for more in (["--optim.steps", 2], ["--fork", "results/000-FPDM-XS-2", "--optim.steps", 3, "--run.name", "fork"]):
        monkeypatch.setattr("sys.argv", ["train.py", *line, *map(str, more)])
        train.main()
    lines = [json.loads(text) for text in Path("results/001-fork/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines] == [2, 3]
    assert all(record["val_fd"] == record["val_fd_2it"] and record["val_loss"] > 0 for record in lines)
    assert "  FD " in Path("results/001-fork/log.txt").read_text()
