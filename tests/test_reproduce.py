"""The reproduction at tiny size: every target, in this process; one by the script, again and out of time."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml

from fpdm import cli
from fpdm.config import ExperimentConfig
from fpdm.reproduction import (
    cifar10,
    digits,
    forms,
    ladder,
    ladder_report,
    longer,
    rates,
    recipes,
    starts,
    targets,
    trainings,
)
from fpdm.reproduction.contenders import load_trained
from fpdm.reproduction.experiments import Laboratory, step_flops

pytestmark = pytest.mark.usefixtures("warm_python")

RUNGS, CHOICES, NETWORKS = forms.RUNGS, recipes.CHOICES, starts.NETWORKS  # before they are made few
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory, tiny, digits_classifier):
    """Every experiment trained for two steps, as one seed; small budgets."""
    out = tmp_path_factory.mktemp("laboratory")
    shutil.copytree(digits_classifier, out / "features")

    def run_here(script, *words, deadline=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, words)])
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")

    def run_all_here(tasks, at_once, deadline):
        for task in tasks:
            run_here(task.script, *task.arguments)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "run_script", run_here)
        patch.setattr(trainings, "run_scripts", run_all_here)
        for name, value in (("LENGTHS", (1, 2)), ("RATES", (1e-3, 2e-3)), ("BUDGETS", (24, 36)),
                            ("ITERATIONS", (1, 2)), ("TRIAL", {"budget": 24, "sampler": "ab2"}),
                            ("NEAR", {"budget": 24, "sampler": "ab2"}),
                            ("CONTENDERS", {"dit": "DiT", "fpdm": "FPDM"}), ("CLAIMS", {"p2": "p2"}),
                            ("CLAIM_LENGTHS", (1, 2)),
                            ("TABLE", {"budget": 24, "sampler": "ddim", "iterations": 1})):  # fmt: skip
            patch.setattr(longer, name, value)
        rungs = (forms.Rung("injection", {"add": {}, "`decay`": {"model.injection": "decay"}}),
                 forms.Rung("supervision", {"last": {}, "early head": {"model.early_head": 1}}))  # fmt: skip
        for name, value in (
            ("RUNGS", rungs),
            ("RATES", (1e-3, 2e-3)),
            ("ITERATIONS", (1, 2)),
            ("RATED", 24),
            ("SCALES", (1.5,)),
        ):
            patch.setattr(ladder, name, value)
        for name, value in (("CHOICE", (24,)), ("OPPONENTS", forms.OPPONENTS[2:4])):
            patch.setattr(ladder, name, value)
            patch.setattr(ladder_report, name, value)
        for name, value in (("BUDGETS", (24, 36)), ("NEAR", 24)):
            patch.setattr(ladder_report, name, value)
        few = {label: CHOICES[label] for label in ("the paper's", "flow", "Muon")}
        few |= {"flow": few["flow"]._replace(rates=(1e-3,)), "Muon": few["Muon"]._replace(rates=few["Muon"].rates[:2])}
        for name, value in (("CHOICES", few), ("BUDGET", 36), ("SHIFTS", {"discrete": (1.0,), "flow": (2.0,)}),
                            ("SAMPLERS", {"discrete": ("ab2",), "flow": ("heun",)})):  # fmt: skip
            patch.setattr(recipes, name, value)
        networks = {
            key: starts.NETWORKS[key]._replace(starts=starts.NETWORKS[key].starts[:2])
            for key in ("add", "loop", "deep")
        }
        for name, value in (("NETWORKS", networks), ("RATES", (1e-3, 2e-3)), ("POINTS", 2),
                            ("SCORED", {"budget": 24, "sampler": "ab2"})):  # fmt: skip
            patch.setattr(starts, name, value)
        patch.setattr(starts, "_steps", lambda lab, key: 4)
        patch.setattr(ladder.Ladder, "_steps", lambda self, form: 5)
        patch.setattr(rates, "MORE", 0)  # each is a training; tests/reproduction/test_rates.py tries them
        patch.setattr(targets, "BUDGETS", (24, 36, 48))
        patch.setattr(targets, "MIDDLE", 36)
        patch.setattr(targets, "ITERATIONS", (1, 4))
        (out / "steps").mkdir()
        for name in digits.EXPERIMENTS:
            (out / "steps" / f"{name}.json").write_text(json.dumps({name: 2, "fpdm": 2}))
        (out / "steps" / "longer.json").write_text(json.dumps({"dit": 5, "fpdm": 9, "p2": 9}))
        yield Laboratory(
            digits.digits(vae_steps=6), out, 1, 1, 65, 65, arguments=tuple(tiny["reproduce.py"][-1].split())
        )


FIGURES = {"fig4": 1, "fig5": 1, "fig6": 3, "fig7": 1, "memorisation": 1, "length": 1, "longer": 1, "ladder": 2,
           "starts": 1}  # fmt: skip


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_target(laboratory, target):
    section = targets.TARGETS[target](laboratory)
    pictures = re.findall(r"\]\(([^)]+)\)", section.text)
    assert len(pictures) == FIGURES.get(target, 0)
    assert all((laboratory.out / picture).stat().st_size > 1000 for picture in pictures)
    rows = [line.split("|") for line in section.text.splitlines() if line.startswith("|")]
    assert (len(rows) >= 4) == (target not in ("fig5", "asset")) and len(
        {len(row) for row in rows if len(row) == len(rows[0])}
    ) <= 1
    assert "nan" not in section.text
    if target == "ladder":
        assert "### The same for the DiT, 3 blocks" in section.text and "### Internal guidance" in section.text


def test_equal_flops_are_equal(laboratory):
    """The steps that an FPDM makes of the FLOPs that the DiT's training took."""
    (dit,), (ours,) = laboratory.models("dit"), laboratory.models("fpdm-equal-flops")
    assert laboratory.steps_of("fpdm-equal-flops") == round(2 * step_flops(dit) / step_flops(ours)) == ours.steps > 2


def test_a_length_is_what_one_run_would_be(laboratory):
    """The fork of a run with a constant rate ends with the weights of a run that was never interrupted."""
    longer.longer(laboratory)
    keys = {path.name.split("-", 1)[1]: load_trained(path).contender.key
            for path in (laboratory.out / "runs").glob("*-longer-dit-*")}  # fmt: skip
    assert set(keys) == {"longer-dit-trial-0.001", "longer-dit-trial-0.002", "longer-dit-seed0",
                         "longer-dit-seed0-1x", "longer-dit-seed0-2x"}  # fmt: skip
    assert keys["longer-dit-seed0-1x"] in (keys["longer-dit-trial-0.001"], keys["longer-dit-trial-0.002"])


def test_a_rung_starts_from_the_best_of_the_one_before(laboratory):
    climber = ladder.Ladder(laboratory)
    (first, second), best = climber.climb()
    assert len(first[1]) == len(second[1]) == 2
    _, entries, chosen = first
    assert climber.choice(chosen) == min(map(climber.choice, entries))
    same, other = second[1]
    assert same.form.key == chosen.form.key and same.models[0] is chosen.models[0]
    assert other.form.options == chosen.form.options | {"model.early_head": 1} and best in second[1]
    runs = [path.name for path in (laboratory.out / "runs").glob("*-ladder-*")]
    assert len(runs) == len({name.split("-", 1)[1] for name in runs})  # each once


def test_every_form_of_the_ladder_is_one_that_trains():
    """Its options are valid, and it has about 30 % of the parameters of the DiT with 12 blocks, or fewer."""
    from fpdm.models import build_model

    parser, sizes = cli.make_parser(ExperimentConfig, ""), {"input_size": 8, "num_classes": 10}
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    largest = count(build_model("DiT-XS/2", **sizes))
    tried = [forms.START.with_options(label, more) for rung in RUNGS for label, more in rung.forms.items()]
    assert len(tried) > 20
    explicit = [base.with_options(label, more) for base in forms.OPPONENTS if base.label in forms.EXPLICIT
                for label, more in forms.EXPLICIT[base.label].items()]  # fmt: skip
    assert len(explicit) == sum(map(len, forms.EXPLICIT.values()))
    for form in tried + explicit:
        words = [str(word) for name, value in form.options.items() for word in (f"--{name}", value)]
        config = cli.parse(ExperimentConfig, parser, ["--config", f"configs/digits/{form.config}.yaml", *words])
        built = count(build_model(config.model.name, **sizes, **config.model.overrides()))
        assert built < 0.301 * largest or form in explicit, form


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", recipes.FAMILIES)
def test_every_choice_of_a_recipe_is_one_that_trains(family, choice):
    """Its options are valid together with the family's config."""
    words = [str(word) for name, value in CHOICES[choice].options.items() for word in (f"--{name}", value)]
    parser = cli.make_parser(ExperimentConfig, "")
    config = cli.parse(ExperimentConfig, parser, ["--config", f"configs/digits/{family}.yaml", *words])
    assert choice == "the paper's" or config != cli.parse(
        ExperimentConfig, parser, ["--config", f"configs/digits/{family}.yaml"]
    )


def settings_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize("family", recipes.FAMILIES)
def test_muons_own_rate_is_tuned(laboratory, family):
    """Everything else has the learning rate that the paper's recipe was best with."""
    entries = {entry.form.label: entry for entry in recipes.trained(ladder.Ladder(laboratory), family)}
    paper, muon = entries["the paper's"], entries["Muon"]
    trials = [settings_of(run)["optim"] for run in (laboratory.out / "runs").glob(f"*-{muon.form.key}-trial-*")]
    assert sorted(trial["muon_lr"] for trial in trials) == [0.005, 0.01] and muon.rate in (0.005, 0.01)
    assert {trial["lr"] for trial in trials} == {paper.rate} and paper.rate in (1e-3, 2e-3)
    (run,) = (laboratory.out / "runs").glob(f"*-{muon.form.key}-seed0")
    assert settings_of(run)["optim"]["muon_lr"] == muon.rate


def test_a_choice_of_the_table_is_what_it_says():
    """The noise levels of EDM2 for latents of deviation 0.5, for ours of 1."""
    assert CHOICES["flow, log-normal noise levels"].options["diffusion.draw_mean"] == pytest.approx(0.293, abs=5e-3)
    assert [label for label, choice in CHOICES.items() if choice.tuned != "optim.lr"] == ["Muon"]


def test_no_run_repeats_the_seeds_of_its_source(laboratory):
    """The draws of a step are keyed by the seed, so the steps of the source would come again."""
    starts.starts(laboratory)
    seeds = {run.name.split("-", 1)[1]: settings_of(run)["run"]["seed"] for run in (laboratory.out / "runs").glob("*")}
    for key, network in starts.NETWORKS.items():
        for start in network.starts[1:]:
            ours = {seed for name, seed in seeds.items() if name.startswith(f"start-{key}-{start.source}-")}
            sources = f"start-{start.source}-" if start.source in starts.NETWORKS else f"{start.source}-seed"
            theirs = {seed for name, seed in seeds.items() if name.startswith(sources)}
            assert ours and theirs and not ours & theirs
    firsts = [network.seed for network in NETWORKS.values()]
    assert all(abs(one - other) >= 100 for one, other in combinations(firsts, 2)) and min(firsts) >= 100


def test_everything_is_trained_and_scored_once(laboratory, monkeypatch):
    before = laboratory.score("fpdm", budget=24, iterations=1)

    def fail(*args, **kwargs):
        raise AssertionError("again")

    monkeypatch.setattr(trainings, "run_scripts", lambda tasks, *rest: [fail() for _ in tasks])
    monkeypatch.setattr(laboratory.book, "compute", fail)
    monkeypatch.setattr(laboratory, "_opened", {})
    assert laboratory.score("fpdm", budget=24, iterations=1) == before
    real = laboratory.real
    assert real.features.shape == (1632, 64) and real.held_out.shape == (165, 64) and real.images.dtype == torch.uint8


def test_the_script_stops_in_time_and_resumes(tmp_path, tiny, digits_classifier):
    out = tmp_path / "out"
    shutil.copytree(digits_classifier, out / "features")

    def reproduce(*words) -> str:
        command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "--out", str(out),
                   *tiny["reproduce.py"], *words]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    (out / "steps").mkdir(parents=True)  # of the second model; those of the first are measured
    (out / "steps" / "dit.json").write_text(json.dumps({"dit": 2, "fpdm": 2}))
    said = reproduce("--minutes", "0.1")
    assert "the same command resumes" in said and not (out / "fig5.md").exists()
    assert "[1 of 1, " in reproduce() and (out / "fig5.png").exists()
    report = (out / "report.md").read_text()
    assert "## Fig. 5" in report and "1 training seeds" in report and "torch" in report


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    for words, says in (
        (["--targets", "tab2"], "targets='tab2': choose one of tab1"),
        (["--data", "cifar10"], "cifar10 needs images"),
        (["--data", "cifar10", "--images", "x", "--targets", "tab1"], "targets='tab1': choose one of yardstick"),
        (["--samples", 10], "samples=10: at least 65"),
        (["--seconds", 7, "--out", tmp_path], "seconds 8 (now 7"),
    ):
        (tmp_path / "settings.json").write_text(json.dumps({"seconds": 8}))
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / "scripts" / "reproduce.py"), run_name="__main__")
        assert exit.value.code == 2 and says in capsys.readouterr().err


def test_help_names_every_target():
    settings = runpy.run_path(str(ROOT / "scripts" / "reproduce.py"))["Settings"]
    for target in (*targets.TARGETS, *cifar10.TARGETS):
        assert target in settings.__doc__
