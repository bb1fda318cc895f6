"""A model whose update is three blocks, beside seven explicit ones: plans, sampling, costs and prints follow it."""

import json
import logging
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

import fpdm
from fpdm.benchmarks.timing import Bench
from fpdm.benchmarks.workloads import blocks_alone, sampling_run
from fpdm.config import DiffusionConfig, ExperimentConfig
from fpdm.cost import ForwardCost
from fpdm.data.codec import PixelCodec
from fpdm.evaluation.comparison import Contender, ScoreBook
from fpdm.loading import make_source
from fpdm.models import FixedPointDiT, block_cost, forward_cost
from fpdm.pipeline import FPDMPipeline
from fpdm.processes import Diffusion
from fpdm.sampling.allocation import ALLOCATIONS, Allocation, constant
from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for
from fpdm.sampling.plan import describe, make_plan
from fpdm.sampling.settings import SamplingConfig
from fpdm.schedulers import default_scheduler
from fpdm.training.describe import describe_cost

COST = ForwardCost(explicit_blocks=7, update_blocks=3, explicit_flops=70, update_flops=33)


class Stub:
    """Halves the distance of the iterate from 1 at each update; predicts zeros."""

    def __call__(self, x, t, y, iterations, init=None, tolerance=None, with_residuals=False, anderson=0):
        counts = torch.as_tensor(iterations).expand(len(x))
        start = torch.zeros(len(x), 2, 2) if init is None else init
        solution = 1 - (1 - start) * 0.5 ** counts[:, None, None]
        return SimpleNamespace(prediction=torch.zeros(len(x), 6, 4, 4), solution=solution, counts=counts,
                               residuals=torch.rand(len(x), int(counts.max())))  # fmt: skip


@pytest.fixture
def source():
    return Source(Stub(), Diffusion(), COST, (3, 4, 4), num_classes=2, codec=PixelCodec(), guidable=True)


def test_the_budget_counts_three_passes_an_update():
    plan = make_plan(COST, budget=100, iterations=4)
    assert len(plan.steps) == 100 // (7 + 4 * 3) == 5 and plan.block_passes == 95
    assert COST.updates(plan.block_passes, calls=5) == 20
    text = describe(plan, COST.total_flops(plan.iterations))
    assert "7 explicit blocks + 4 iterations of 3 blocks each: 95 block passes, 0.000 GFLOPs" in text
    for allocation in ("increasing", "decreasing"):  # as much of the budget as whole updates can use
        moved = make_plan(COST, budget=100, iterations=4, allocation=allocation)
        assert sum(moved.iterations) == (100 - 5 * 7) // 3 and 98 <= moved.block_passes <= 100
    with pytest.raises(ValueError, match="budget=18 does not hold one timestep of 19 block passes"):
        make_plan(COST, budget=18, iterations=4)


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 2.0, "cfg_interval": [0, 300]}, {"allocation": "adaptive"}])
def test_a_folder_of_samples_says_what_they_cost(source, tmp_path, caplog, settings):
    with caplog.at_level(logging.INFO, "fpdm"):
        folder = fpdm.sample_to_folder(source, tmp_path / "samples", 5, batch_size=2, budget=100, **settings)
    recipe = json.loads((folder / "samples.json").read_text())
    guided = 2 if "cfg_scale" in settings else 0  # of five timesteps, these in the interval count twice
    assert recipe["block_passes"] == 95 and recipe["flops_per_image"] == (5 + guided) * (70 + 4 * 33)
    assert "4 iterations of 3 blocks each: 95 block passes" in caplog.text
    assert len(list(folder.glob("0*.png"))) == 5
    if "allocation" in settings:
        spent = json.loads((folder / "allocation.json").read_text())
        assert spent["images"] == 5 and spent["block_passes"] == pytest.approx(5 * 7 + 3 * sum(spent["updates"]))


class Alternating:
    """One and two updates in turn, whatever the residual: no tolerance, so the model counts nothing."""

    def __init__(self, counts, rows, device, settings):
        self.seen = []

    def request(self, call, rows):
        return {"iterations": 1 + call % 2}

    def observe(self, updates):
        self.seen.append(updates)

    @staticmethod
    def explain(settings):
        return "one and two in turn"


def test_another_allocation_at_run_time_is_counted_and_said(source, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(ALLOCATIONS, "alternating", Allocation(constant, "in turn", at_run_time=Alternating))
    with caplog.at_level(logging.INFO, "fpdm"):
        folder = fpdm.sample_to_folder(source, tmp_path / "s", 4, budget=100, allocation="alternating")
    assert json.loads((folder / "allocation.json").read_text())["updates"] == [1, 2, 1, 2, 1]
    assert "alternating: this is the maximum; one and two in turn" in caplog.text


def test_a_source_without_origin_needs_a_new_folder(source, tmp_path):
    """Images that are there could be another model's."""
    with pytest.raises(ValueError, match="folder=None: this source does not say which checkpoint"):
        fpdm.sample_to_folder(source, num_samples=2, budget=100)
    fpdm.sample_to_folder(source, tmp_path / "s", 2, budget=100)
    with pytest.raises(ValueError, match="give a folder that does not exist yet"):
        fpdm.sample_to_folder(source, tmp_path / "s", 2, budget=100)
    named = source._replace(origin={"checkpoint": "a", "weights": "ema", "precision": "no", "codec": "pixels"})
    for count in (2, 3):
        fpdm.sample_to_folder(named, tmp_path / "t", count, budget=100)
    with pytest.raises(ValueError, match="another recipe"):
        fpdm.sample_to_folder(named._replace(origin=named.origin | {"checkpoint": "b"}), tmp_path / "t", 3, budget=100)
    with pytest.raises(ValueError, match=r"source\.codec is not set"):
        fpdm.sample(source._replace(codec=None), 1, budget=100)


def test_a_setting_newer_than_a_folder_does_not_close_it(source, tmp_path):
    named = source._replace(origin={"checkpoint": "a"})
    folder = fpdm.sample_to_folder(named, tmp_path / "s", 1, budget=100)
    recipe = json.loads((folder / "samples.json").read_text())
    del recipe["sampling"]["guidance_rescale"]
    (folder / "samples.json").write_text(json.dumps(recipe))
    assert fpdm.sample_to_folder(named, folder, 2, budget=100) == folder


def test_scores_say_what_an_image_cost(source, tmp_path):
    features = lambda images: images.float().flatten(1)[:, :2] + torch.rand(len(images), 2)  # noqa: E731
    book = ScoreBook(tmp_path / "scores.json", features, "", torch.randn(10, 2), images=6, batch_size=3)
    score = book.score(Contender("stub", "", source), SamplingConfig(budget=100, iterations=4))
    assert (score.timesteps, score.block_passes) == (5, 95) and score.gflops == pytest.approx(5 * 202 / 1e9)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FixedPointDiT(input_size=4, in_channels=3, hidden_size=32, num_heads=2, num_classes=2, pre_depth=3,
                         post_depth=4, implicit_depth=3, injection="add").eval()  # fmt: skip


def test_a_network_with_three_blocks_in_the_loop(model):
    """Only the model knows: costs, plans, the sampler, adaptive allocation, the pipeline and prints follow."""
    assert block_cost(model) == ForwardCost(7, 3, exit_blocks=4)
    cost = forward_cost(model)
    assert cost.update_flops > 0 and model.layers()[3] is model.implicit and len(model.layers()) == 8
    source = make_source(model, Diffusion(), PixelCodec())
    assert source.cost == cost
    for settings in ({"iterations": 4}, {"allocation": "adaptive"}, {"iterations": 4, "anderson": 2}):
        config = SamplingConfig(budget=100, **settings)
        assert plan_for(source, config).block_passes == 95
        assert fpdm.sample(source, 3, budget=100, **settings).shape == (3, 3, 4, 4)
    printed = describe_cost(ExperimentConfig(), model, cost)
    assert f"{7 + 3 * (6 + 6.5):g} block passes forward per image" in printed
    bench = Bench(torch.device("cpu"), "no", 1)
    plan = plan_for(source, SamplingConfig(budget=38))
    assert sampling_run(bench, model, (3, 4, 4), 2, plan)().shape == (2, 3, 4, 4)
    assert blocks_alone(bench, model, 2, plan)().shape == (2, 4, 32)


def test_the_pipeline_counts_three_passes_an_update(model):
    facts = {"diffusion": asdict(DiffusionConfig()), "codec": "pixels", "codec_fingerprint": "pixels"}
    pipe = FPDMPipeline(model, default_scheduler(Diffusion()), None, facts)
    pipe.set_progress_bar_config(disable=True)
    output = pipe([0, 1], budget=100, iterations=4, output_type="latent")
    assert output.block_passes == 95 and len(pipe.scheduler.timesteps) == 5


@pytest.mark.parametrize(
    ("settings", "reuses"),
    [({}, True), ({"reuse": False}, False), ({"injection": "add"}, False), ({"injection": "none"}, False)],
)
def test_samplers_reuse_solutions_as_the_model_says(settings, reuses, tmp_path):
    """The default and what it writes into a recipe; options that need reuse are refused where there is none."""
    torch.manual_seed(0)
    model = FixedPointDiT(input_size=4, in_channels=3, hidden_size=32, num_heads=2, num_classes=2, **settings).eval()
    source, starts = make_source(model, Diffusion(), PixelCodec()), []
    denoise = lambda *args, **kwargs: (starts.append(kwargs["init"]), source.denoise(*args, **kwargs))[1]  # noqa: E731
    watched = source._replace(denoise=denoise, origin={"checkpoint": "a"})
    folder = fpdm.sample_to_folder(watched, tmp_path / "s", 1, steps=3, iterations=2)
    assert [start is not None for start in starts] == [False, reuses, reuses]
    assert json.loads((folder / "samples.json").read_text())["sampling"]["reuse"] is reuses
    if reuses:
        return
    for option in ({"extrapolation": 0.5}, {"reuse_weight": 0.5}):
        (name, value), *_ = option.items()
        with pytest.raises(ValueError, match=f"{name}={value}: this model"):
            fpdm.sample(source, 1, steps=3, **option)
    if settings.get("injection") == "none":
        with pytest.raises(ValueError, match="reuse=true: this model has"):
            fpdm.sample(source, 1, steps=3, reuse=True)
    else:
        assert fpdm.sample(source, 1, steps=3, reuse=True, extrapolation=0.5).shape == (1, 3, 4, 4)
