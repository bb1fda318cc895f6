"""The comparison on natural images at tiny size: every section, with trainings and scores of a few steps and images."""

import json
import math
import re
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fpdm
from fpdm.chain import OutOfTime, Task
from fpdm.loading import load_source
from fpdm.reproduction import bench_asset, bench_core, bench_report, bench_spread, cifar10, trainings
from fpdm.reproduction.bench import Bench, Subject
from fpdm.reproduction.contest import PARTS, Contest, Entrant, validations
from fpdm.reproduction.scoring import Scored, gathered
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.checkpoint import find_checkpoint

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
TINY = ("--model.hidden_size 16 --model.num_heads 2 --optim.batch_size 4 --optim.warmup 1 --run.log_every 5 "
        "--run.mixed_precision no --validation.samples 4 --validation.budget 12 --validation.count 4 "
        "--validation.iterations [1]")  # fmt: skip
SUBJECT = Subject(
    configs="cifar10-small",
    vae="assets/cifar10-vae",
    entrants={
        "dit-12": Entrant("DiT", "dit", ("--model.depth", 2), seeds=2),
        "fpdm": Entrant("FPDM", "fpdm", variants={k: cifar10.VARIANTS[k] for k in ("n2-m3", "jfb-6")}),
        "dit-3": Entrant("DiT, 1 block", "dit", ("--model.depth", 1)),
    },
    rates=(1e-3, 2e-3),
    budgets=(12, 24),
    middle=24,
    core={"core-dit": Entrant("DiT", "dit", ("--model.depth", 2))},
    forms={
        "grown": Entrant("grown", "fpdm", ("--model.implicit_depth", 2, "--sjfb.grow", "[[0,1],[0.5,2]]")),
        "looped": Entrant("looped", "fpdm", ("--model.implicit_depth", 2)),
    },
    core_rates=(1e-3, 2e-3),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """300 coloured 32x32 images of ten classes."""
    root, rng = tmp_path_factory.mktemp("ten"), np.random.default_rng(0)
    for label in range(10):
        (root / str(label)).mkdir()
        for i in range(30):
            pixels = np.full((32, 32, 3), 20 * label) + rng.integers(0, 60, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / str(label) / f"{i:02d}.png")
    return root


def run_here(tasks: list[Task], at_once: int, deadline: float | None) -> list[Task]:
    for task in tasks:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [task.script, *map(str, task.arguments)])
            runpy.run_path(str(ROOT / "scripts" / task.script), run_name="__main__")
    return []


@pytest.fixture(scope="module")
def bench(tmp_path_factory, images):
    """Everything trained for 15 steps or fewer."""
    out = tmp_path_factory.mktemp("bench")
    steps = dict.fromkeys(("dit-12", "dit-3", "fpdm-n2-m3", "fpdm-jfb-6"), PARTS + 3)
    (out / "steps.json").write_text(json.dumps(steps))
    (out / "steps-core.json").write_text(json.dumps(dict.fromkeys(("core-dit", "grown", "looped"), PARTS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "run_scripts", run_here)
        patch.setattr(bench_report, "TIMESTEPS", (2, 3))
        patch.setattr(bench_core, "BUDGETS", (12, 24))
        for name, value in (("TIMESTEPS", (2, 3)), ("COUNT", 20), ("BATCH", 12)):
            patch.setattr(bench_spread, name, value)
        patch.setattr("fpdm.reproduction.bench.ITERATIONS", (1, 2))
        patch.setattr("fpdm.reproduction.bench.KEPT", 1)
        yield Bench(SUBJECT, str(images), out, 1, 0.5, 8, 8, 1, None, tuple(TINY.split()))


FIGURES = {"quality": 2, "training": 1, "grids": 1, "core": 2}


@pytest.mark.parametrize("target", bench_report.SECTIONS)
def test_every_section(bench, target):
    section = bench_report.SECTIONS[target](bench)
    (bench.out / f"{target}.md").write_text(section.text)
    assert section.text.count("](") == FIGURES.get(target, 0)
    rows = [line for line in section.text.splitlines() if line.startswith("|")]
    assert (len(rows) >= 4) == (target not in ("grids", "asset")) and "nan" not in section.text


def test_lengths_of_one_run(bench):
    """The forks continue the run from its checkpoints, and the rate falls over the last fifth of each length."""
    trunk, third, two = (bench.contest.run("dit-12", 1, length) for length in (3, 1, 2))
    for run, steps in ((third, 5), (two, 10), (trunk, 15)):
        lines = validations(run)
        assert find_checkpoint(run).name == f"{steps:07d}" and [line["step"] for line in lines] == [
            *range(1, steps + 1)
        ]
        rates, start = [line["lr"] for line in lines], steps - steps // 5
        assert len(set(rates[1 : start + 1])) == 1  # constant after the warm-up; the cool-down begins at the full rate
        assert rates[start:] == pytest.approx([rates[1] * (1 - math.sqrt(i * 5 / steps)) for i in range(steps // 5)])
    shared = [(line["step"], line["loss"], line["val_loss"]) for line in validations(two)][:8]
    assert shared == [(line["step"], line["loss"], line["val_loss"]) for line in validations(trunk)][:8]


def test_what_the_trials_choose(bench):
    trials = bench.contest.variant_trials("fpdm")
    assert (
        bench.contest.variant("fpdm")
        == min(trials, key=lambda trial: trial.loss).name.split("-", 2)[2].rsplit("-", 1)[0]
    )
    for name, found in bench.contest.rate_trials(["dit-12", "dit-3"]).items():
        best, rates = min(found, key=lambda trial: trial.loss), [trial.rate for trial in found]
        assert rates == sorted(rates) and {1e-3, 2e-3} <= set(rates) and 3 <= len(rates) <= 4
        assert len(rates) == 4 or best.rate not in (rates[0], rates[-1])  # at an edge, further ones were tried
        assert f"{bench.contest.rate(name):g}" == best.name.rsplit("-", 1)[1] and best.steps == 8
        assert (
            bench.contest.run(name).joinpath("config.yaml").read_text().count(f"lr: {bench.contest.rate(name):g}") == 1
        )


def test_nothing_is_trained_or_scored_twice(bench, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("again")

    before = bench.score("fpdm", budget=24, iterations=1, sampler="ab2")
    monkeypatch.setattr(trainings, "run_scripts", lambda tasks, *rest: fail() if tasks else [])
    monkeypatch.setattr(bench.scores.book, "compute", fail)
    bench.contest.train()
    assert bench.score("fpdm", budget=24, iterations=1, sampler="ab2") == before


def test_scores_of_two_processes_are_those_of_one(bench, monkeypatch):
    """Each in a fresh book: on their own, and in a pool."""
    wanted = [
        Scored(run, SamplingConfig(steps=2, sampler="ddim", seed=s)) for s, run in enumerate(bench.runs("dit-12"))
    ]
    monkeypatch.setattr(bench.scores.book, "_known", {})
    bench.scores.fill(wanted)
    alone = [bench.scores.at(w.run, steps=2, sampler="ddim", seed=w.config.seed).distance for w in wanted]
    monkeypatch.setattr(bench.scores.book, "_known", {})
    monkeypatch.setattr(bench.scores, "at_once", 2)
    bench.scores.fill(wanted)
    monkeypatch.setattr(bench.scores.book, "compute", None)
    pooled = [bench.scores.at(w.run, steps=2, sampler="ddim", seed=w.config.seed).distance for w in wanted]
    assert pooled == pytest.approx(alone, rel=1e-4) and alone[0] != alone[1]
    monkeypatch.setattr(bench.scores, "deadline", time.monotonic())
    monkeypatch.setattr(bench.scores.book, "_known", {})
    with pytest.raises(OutOfTime, match="the same command resumes"):
        bench.scores.fill(wanted)
    assert len(bench.scores.book._known) == 1  # what was done is kept


def test_release(bench, monkeypatch):
    section = cifar10.release(bench)
    released = {path.name for path in (bench.out / "release").rglob("*")}
    assert "files" in section.text
    assert {"quality.md", "grids.png", "fpdm-s-2", "model.safetensors", "scores.json", "steps.json"} <= released
    assert load_source(bench.out / "release" / "fpdm-s-2", device="cpu").num_classes == 10
    monkeypatch.setattr(cifar10, "RELEASE_LIMIT", 1000)
    with pytest.raises(ValueError, match="at most 1,000 and 15 MB"):
        cifar10.release(bench)


def test_the_gpu_run_is_rehearsed(tmp_path, images, monkeypatch):
    """Every part of what a GPU does: pixels, 16 bits, one learning rate, what is released."""
    monkeypatch.setattr(trainings, "run_scripts", run_here)
    monkeypatch.setattr(bench_report, "TIMESTEPS", (2,))
    monkeypatch.setattr("fpdm.reproduction.bench.ITERATIONS", (1, 2))
    (tmp_path / "steps.json").write_text(json.dumps(dict.fromkeys(cifar10.FULL.entrants, PARTS)))
    words = f"{TINY} --run.compile false --validation.samples 2"  # trained in float32, as the runs above
    subject = cifar10.FULL._replace(budgets=(12, 28), middle=28)
    bench = Bench(subject, str(images), tmp_path, 1, 0.5, 5, 5, 1, None, tuple(words.split()), precision="bf16")
    for name, target in cifar10.TARGETS.items():
        (tmp_path / f"{name}.md").write_text(target(bench).text)
    assert (tmp_path / "quality.md").read_text().count("FPDM-S/2, ") == 4
    released = {path.name for path in (tmp_path / "release").rglob("*")}
    assert {"final.md", "fpdm-s-2"} <= released and sum(name.endswith("log.jsonl") for name in released) == 9


def test_the_subjects_have_what_the_sections_need():
    for subject in (cifar10.SMALL, cifar10.FULL):
        assert {"dit-12", "dit-3", "fpdm"} <= subject.entrants.keys() and subject.middle in subject.budgets
        for entrant in (subject.entrants | subject.core | subject.forms).values():
            assert (ROOT / "configs" / subject.configs / f"{entrant.config}.yaml").is_file()


def test_the_forms_have_at_most_30_percent_of_the_parameters():
    from fpdm import cli
    from fpdm.config import ExperimentConfig
    from fpdm.models import build_model

    def parameters(entrant: Entrant) -> int:
        words = ["--config", f"configs/cifar10-small/{entrant.config}.yaml", *map(str, entrant.arguments)]
        config = cli.parse(ExperimentConfig, parser, words)
        with torch.device("meta"):
            model = build_model(config.model.name, input_size=8, num_classes=10, **config.model.overrides())
        return sum(parameter.numel() for parameter in model.parameters())

    parser, small = cli.make_parser(ExperimentConfig, ""), cifar10.SMALL
    most = parameters(small.core["core-dit-12"])
    shares = {name: parameters(form) / most for name, form in small.forms.items()}
    assert max(shares.values()) < 0.3 and len(shares) > 10, shares


def test_the_asset_stands_alone_and_its_card_says_how_good_it_is(bench):
    bench_asset.asset(bench)
    folder = bench.out / "asset"
    card = (folder / "README.md").read_text()
    (form,) = set(bench.core.entrants) - {"core-dit"}
    scores = bench.score(form, budget=24, sampler=re.search(r"--sampler (\S+)", card)[1],
                         iterations=int(re.search(r"--iterations (\d)", card)[1]))  # fmt: skip
    assert f"{scores[0].distance:.2f} for this training seed (0)" in card and f"Form: {form} " in card
    images = fpdm.sample(fpdm.load_source(folder, device="cpu"), 2, steps=2, iterations=1)
    assert images.shape == (2, 3, 32, 32)


def test_the_core_keeps_the_forms_that_are_best_in_their_trials(bench):
    trials = bench.candidates.rate_trials(["grown", "looped"])
    lowest = {name: min(trial.loss for trial in found) for name, found in trials.items()}
    best, other = sorted(lowest, key=lowest.get)
    assert list(bench.core.entrants) == ["core-dit", best] and bench.runs(best)
    with pytest.raises(KeyError):
        bench.runs(other)
    assert not list((bench.out / "runs").glob(f"*-{other}-seed*"))


def test_a_run_that_is_not_there(tmp_path):
    made = Contest({}, "cifar10", (), tmp_path, 1, 1, (1e-3,), 1, None)
    with pytest.raises(FileNotFoundError, match="no run named x-seed0"):
        made.run("x")
    assert made.rate("x") == 1e-3 and made.rate_trials(["x"]) == {}


def test_gathered_features_have_their_own_statistics():
    found = gathered(torch.eye(3))
    assert found.pool.count == 3 and found.kept.shape == (3, 3) and found.pool.mean == pytest.approx([1 / 3] * 3)
