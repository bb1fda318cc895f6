"""A weighting with learned parameters, EDM2's: what it minimises, and that it is trained as the network is."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from fpdm import weightings
from fpdm.models import load_pretrained
from fpdm.processes import Diffusion, Losses
from fpdm.training.checkpoint import TRAINER, find_checkpoint, load_trainer
from fpdm.training.loop import train
from fpdm.training.objective import Objective, average_gradients

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]
UNCERTAINTY = '''

import torch


class Uncertainty(nn.Module):
    """EDM2's (Karras et al., 2024): error / exp(u) + u, with u learned from Fourier features of ln(sigma) / 4."""

    def __init__(self, alpha_bar, channels=128):
        super().__init__()
        noise_level = np.log((1 - alpha_bar) / alpha_bar.clip(1e-8))[:, None] / 8
        angles = torch.tensor(noise_level) * torch.randn(channels) + torch.rand(channels)
        self.register_buffer("features", (2 * torch.pi * angles).cos().float())
        self.u = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.u.weight)

    def forward(self, error, t):
        u = self.u(self.features[t])[:, 0]
        return error / u.exp() + u


WEIGHTINGS["uncertainty"] = Uncertainty
'''
LEARNED = {"weighting": "uncertainty"}


@pytest.fixture
def uncertainty(monkeypatch):
    """The weighting as if it stood at the end of its file, for one test."""
    monkeypatch.setitem(weightings.WEIGHTINGS, "uncertainty", None)
    exec(UNCERTAINTY, dict(vars(weightings)))


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors that are trained or averaged, and the optimizer's, by name."""
    trainer = load_trainer(checkpoint)
    parts = {name: load_pretrained(checkpoint / name).state_dict() for name in ("model", "ema")}
    parts |= {"objective": trainer["objective"]}
    parts |= {f"adamw{i}": values for i, values in trainer["optimizer"]["state"].items()}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def assert_same(a: Path, b: Path, **tolerances: float) -> None:
    one, two = state(a), state(b)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **tolerances or {"atol": 0, "rtol": 0}, msg=name)


def return_to(run: Path, checkpoint: str) -> None:
    """Make `checkpoint` the newest of a run."""
    link = run / "checkpoints" / "latest"
    link.unlink()
    link.symlink_to(checkpoint)


def test_gradients_are_those_of_the_formula(uncertainty):
    torch.manual_seed(0)
    diffusion, t = Diffusion(**LEARNED), torch.tensor([0, 300, 999])
    objective = Objective(diffusion)
    torch.nn.init.normal_(objective.weighting.u.weight, std=0.1)
    x0, noise = torch.randn(2, 3, 4, 4, 4).unbind()
    prediction = torch.randn(3, 8, 4, 4, requires_grad=True)
    losses = diffusion.losses(prediction, x0, noise, t)
    objective(losses, t).sum().backward()

    features = objective.weighting.features[t]
    u = (features * objective.weighting.u.weight.detach()).sum(1)
    torch.testing.assert_close(objective.weighting.u.weight.grad[0], (1 - losses.mse.detach() * (-u).exp()) @ features)
    by_hand = prediction.detach().requires_grad_()
    plain = Diffusion(weighting="v").losses(by_hand, x0, noise, t)
    assert torch.equal(plain.mse, losses.mse) and torch.equal(plain.total, losses.total)
    ((-u).exp() * plain.mse + plain.vb).sum().backward()
    torch.testing.assert_close(prediction.grad, by_hand.grad)


def test_u_becomes_the_logarithm_of_the_error(uncertainty):
    """Of error / exp(u) + u the minimum is at u = ln(error): here that of a network that always predicts v = 0."""
    torch.manual_seed(0)
    diffusion, t = Diffusion(**LEARNED), torch.arange(1000)
    objective = Objective(diffusion)
    ab = torch.tensor(diffusion.alphas_cumprod).float()
    error = ab * 1.0 + (1 - ab) * 0.05  # v = sqrt(ab) eps - sqrt(1 - ab) x0, the data's variance being 0.05
    losses = Losses(error, error, torch.zeros_like(error))
    adamw = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(1500):
        adamw.zero_grad()
        objective(losses, t).mean().backward()
        adamw.step()
    u = objective.weighting.u(objective.weighting.features)[:, 0]
    assert (u - error.log()).abs().max() < 0.05
    assert float(objective(losses, t).mean().detach()) == pytest.approx(float((1 + error.log()).mean()), abs=1e-3)


@pytest.mark.parametrize("model", [{}, {"name": "DiT-XS/4", "depth": 2}], ids=["FPDM", "DiT"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_run_equals_the_uninterrupted_one(uncertainty, experiment, tmp_path, model, precision):
    settings = {"checkpoint_every": 3, "log_every": 1, "mixed_precision": precision}
    config = experiment(model=model, diffusion=LEARNED, optim={"steps": 6}, run=settings)
    whole = train(config)
    cut = tmp_path / "runs" / f"001-{whole.name[4:]}"
    shutil.copytree(whole, cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "0000006")
    return_to(cut, "0000003")
    assert train(config, resume=str(cut)) == cut
    assert_same(find_checkpoint(whole), find_checkpoint(cut))
    for ours, theirs in zip(log(cut), log(whole), strict=True):
        for name in ("step", "loss", "mse", "vb", "grad_norm", "objective"):
            assert ours[name] == theirs[name], name


def test_parameters_are_trained_and_stay_out_of_the_model(uncertainty, experiment):
    """The logged loss is not weighted: at the first step u is 0, and it equals the objective."""
    run = train(experiment(diffusion=LEARNED, run={"log_every": 1}))
    lines, learned = log(run), load_trainer(find_checkpoint(run))["objective"]
    assert learned["weighting.u.weight"].abs().min() > 0
    assert lines[0]["objective"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert lines[-1]["objective"] != pytest.approx(lines[-1]["loss"], rel=1e-4)
    plain = train(experiment())
    for name in ("model", "ema"):
        keys = [load_pretrained(find_checkpoint(r) / name).state_dict().keys() for r in (run, plain)]
        assert keys[0] == keys[1]


def test_checkpoint_from_before_learned_weightings_is_resumed(experiment, tmp_path):
    config = experiment(optim={"steps": 6}, run={"checkpoint_every": 3})
    run = train(config)
    shutil.copytree(find_checkpoint(run), tmp_path / "whole")
    return_to(run, "0000003")
    older = torch.load(find_checkpoint(run) / TRAINER, weights_only=True)
    assert older.pop("objective") == {}
    torch.save(older, find_checkpoint(run) / TRAINER)
    train(config, resume=str(run))
    assert_same(tmp_path / "whole", find_checkpoint(run))


def test_accumulation_is_the_whole_batch(uncertainty, experiment):
    runs = [train(experiment(diffusion=LEARNED, optim={"micro_batch_size": micro})) for micro in (8, 2)]
    assert_same(*map(find_checkpoint, runs), atol=1e-5, rtol=1e-3)


def test_clipping_and_the_logged_norm_are_of_all_parameters(uncertainty, experiment):
    """One step leaves (1 - beta2) * gradient^2 in Adam's second moment, whose sum is (1 - beta2) * norm^2."""
    for clip in (None, 1e-6):
        run = train(experiment(diffusion=LEARNED, optim={"steps": 1, "clip_norm": clip}))
        moments = [s["exp_avg_sq"] for s in load_trainer(find_checkpoint(run))["optimizer"]["state"].values()]
        assert moments[-1].shape == (1, 128) and moments[-1].sum() > 0
        norm = clip or log(run)[0]["grad_norm"]
        assert sum(float(moment.sum()) for moment in moments) == pytest.approx(1e-3 * norm**2, rel=1e-2)


def test_skipped_step_leaves_them_as_they_were(uncertainty, experiment, monkeypatch):
    """Also where its own gradient alone is not finite."""
    forward, weights = Objective.forward, []

    def poisoned(self, losses, t):
        weights.append(self.weighting.u.weight.detach().clone())
        return forward(self, losses, t) + (math.nan * self.weighting.u.weight.sum() if len(weights) == 3 else 0)

    monkeypatch.setattr(Objective, "forward", poisoned)
    run = train(experiment(diffusion=LEARNED, optim={"steps": 5}))
    assert log(run)[-1]["skipped"] == 1
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [False, False, True, False]


def test_result_of_another_shape_is_refused(monkeypatch):
    """(B, 1), as a linear layer gives it, would be broadcast to (B, B)."""
    uncertain = type("Uncertain", (torch.nn.Module,), {"__init__": lambda self, ab: torch.nn.Module.__init__(self),
                                                       "forward": lambda self, error, t: error[:, None]})  # fmt: skip
    monkeypatch.setitem(weightings.WEIGHTINGS, "uncertain", uncertain)
    objective, t = Objective(Diffusion(weighting="uncertain")), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"diffusion\.weighting=uncertain: its result has shape \(2, 1\); return one"):
        objective(Losses(*torch.ones(3, 2)), t)


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match=r"^diffusion\.weighting='theirs': choose one of v, eps, x0, min-snr, p2$"):
        Objective(Diffusion(weighting="theirs"))


def test_all_processes_reduce_the_same_tensors(uncertainty):
    """Also if this one did not use a parameter, which another process may have used; never what is not trained."""
    objective, reduced = Objective(Diffusion(**LEARNED)), []

    class Accelerator:
        def reduce(self, tensor, how):
            reduced.append((tuple(tensor.shape), how))
            return tensor + 1

    objective.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    average_gradients(Accelerator(), objective)
    assert reduced == [((1, 128), "mean")] and objective.frozen.grad is None
    assert torch.equal(objective.weighting.u.weight.grad, torch.ones(1, 128))


def test_changed_weighting_is_refused_on_resume(uncertainty, experiment, monkeypatch):
    run = train(experiment(diffusion=LEARNED, optim={"steps": 1}))
    learned = weightings.WEIGHTINGS["uncertainty"]
    wider = type("Wider", (learned,), {"__init__": lambda self, ab: learned.__init__(self, ab, channels=64)})
    monkeypatch.setitem(weightings.WEIGHTINGS, "uncertainty", wider)
    with pytest.raises(ValueError, match=r"^diffusion\.weighting=uncertainty: .* or start a new run") as error:
        train(experiment(diffusion=LEARNED, optim={"steps": 2}), resume=str(run))
    assert "weighting.u.weight" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the package with the weighting at the end of its file, and nothing else changed."""
    folder = tmp_path_factory.mktemp("fork")
    for name in ("fpdm", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "fpdm" / "weightings.py").open("a") as file:
        file.write(UNCERTAINTY)
    return folder


def train_script(fork: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(fork), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(fork / "scripts" / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=fork)


def test_two_processes_follow_the_path_of_one(fork, experiment, tmp_path):
    """From the command line; parts of a batch are not synchronised, so their gradients must be averaged once."""
    settings = {"log_every": 1, "checkpoint_every": 3}
    config = asdict(experiment(optim={"steps": 6, "micro_batch_size": 2}, run=settings))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", str(tmp_path / "config.yaml"), "--diffusion.weighting", "uncertainty"]
    runs = []
    for processes in (1, 2):
        results = tmp_path / f"on-{processes}"
        done = train_script(fork, *words, "--run.results", str(results), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        runs += results.iterdir()
    assert_same(*map(find_checkpoint, runs), atol=1e-5, rtol=1e-3)
    for a, b in zip(*map(log, runs), strict=True):
        for name in ("loss", "mse", "vb", "grad_norm", "objective"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-4), name

    # and two processes that resume arrive where they were
    shutil.copytree(find_checkpoint(runs[1]), tmp_path / "before")
    return_to(runs[1], "0000003")
    done = train_script(fork, *words, "--run.results", str(results), "--resume", str(runs[1]), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "before", find_checkpoint(runs[1]))


def test_names_in_help_and_error_are_those_of_the_registry(fork):
    assert "one of v, eps, x0, min-snr, p2, uncertainty" in " ".join(train_script(fork, "--help").stdout.split())
    done = train_script(fork, "--diffusion.weighting", "uncertian", "--data.latents", "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    says = "diffusion.weighting='uncertian': choose one of v, eps, x0, min-snr, p2, uncertainty"
    assert says in done.stderr
