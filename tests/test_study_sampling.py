"""scripts/study_sampling.py at tiny size: every part on two training seeds, gone on with, refused for other models."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig
from fpdm.training.loop import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_store):
    """Two FPDMs and a DiT, trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        train(
            ExperimentConfig(
                model=ModelConfig(name=name, hidden_size=32, num_heads=2),
                data=DataConfig(latents=str(tiny_store)),
                optim=OptimConfig(steps=2, batch_size=4),
                run=RunConfig(results=str(folder), seed=seed),
            )
        )
        for name, seed in (("FPDM-XS/2", 0), ("FPDM-XS/2", 1), ("DiT-XS/4", 0))
    ]


@pytest.fixture
def study(monkeypatch, capsys, image_folder, tmp_path):
    def run(*words) -> str:
        out = ["--reference", image_folder, "--out", tmp_path / "out", "--images", 65, "--batch-size", 65]
        monkeypatch.setattr(sys, "argv", ["study_sampling.py", *map(str, (*out, *words))])
        runpy.run_path(str(ROOT / "scripts" / "study_sampling.py"), run_name="__main__")
        return (tmp_path / "out" / "report.md").read_text()

    return run


def test_every_table(study, runs, tmp_path):
    words = ["--ckpt", ",".join(map(str, runs)), "--budget", 16, "--budgets", "24,36", "--iterations", "1,3"]
    report = study(*words)
    assert "2 FPDM and 1 DiT training seeds" in report
    assert "| 5 timesteps, 1 it. |" in report and "| 3 timesteps, 3 it. |" in report
    assert "Anderson" not in report.split("| 3 timesteps, 3")[0] and "| reuse, Anderson(3) |" in report
    for row in ("| FPDM, 1 it. | ab2 |", "| DiT | heun |", "| FPDM, 2 it. | ddpm |"):
        assert re.search(re.escape(row) + r" \d+\.\d\d( ± \d+\.\d\d)? \|", report), row
    assert re.search(r"\| adaptive, tolerance 0\.2 \| \d+\.\d \| \d+\.\d\d \| [^|]+± [^|]+\| [-+][^|]+\|", report)
    assert re.search(r"\| (better|worse|no difference) \|", report)
    scores = (tmp_path / "out" / "scores.json").stat().st_mtime_ns
    assert study(*words) == report and (tmp_path / "out" / "scores.json").stat().st_mtime_ns == scores


def test_mistakes_are_one_line(study, runs, capsys):
    for words, says in (
        (["--budget", 16], "ckpt is not set"),
        (["--ckpt", runs[2]], "at least one must be of an FPDM"),
        (["--ckpt", runs[0], "--parts", "solve"], "parts='solve': choose one of"),
    ):
        with pytest.raises(SystemExit) as exit:
            study(*words)
        assert exit.value.code == 2 and says in capsys.readouterr().err


def test_residuals_of_start_and_solution(runs):
    """Against a plain run: the start's is that of the first update, the solution's that of one update more."""
    from fpdm.evaluation.convergence import solve_residuals
    from fpdm.loading import load_source
    from fpdm.sampling.noise import image_labels, image_noise
    from fpdm.sampling.settings import SamplingConfig

    source, config = load_source(runs[0], device="cpu"), SamplingConfig(steps=2, iterations=3, seed=4)
    starts, ends = solve_residuals(source, config, range(5))
    assert starts.shape == ends.shape == (5, 2)
    x, y = image_noise(4, range(5), 0, source.latent_shape), image_labels(4, range(5), source.num_classes)
    t = torch.full((5,), 999)
    with torch.inference_mode():
        residuals = source.denoise(x, t, y, iterations=4, with_residuals=True).residuals
    torch.testing.assert_close(torch.tensor(starts[:, 0]), residuals[:, 0])
    torch.testing.assert_close(torch.tensor(ends[:, 0]), residuals[:, 3])
