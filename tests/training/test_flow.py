"""Training on the linear interpolant: every way of training, resumed, validated, sampled, with other new options."""

import json
import shutil

import numpy as np
import pytest
import torch

from fpdm.commands.train import make_preview
from fpdm.config import (
    DataConfig,
    DiffusionConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SJFBConfig,
)
from fpdm.export import export_model
from fpdm.loading import load_checkpoint, load_source
from fpdm.models import load_pretrained
from fpdm.sampling.generate import plan_for, sample, sample_images
from fpdm.sampling.noise import image_labels, image_noise
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.trace import Recorder
from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.loop import train
from fpdm.training.start import Init

FLOW = {"process": "flow", "draw": "logit-normal"}
DIT = {"name": "DiT-XS/4", "depth": 3}
WAYS = {
    "plain": ({}, {}),
    "consistency": ({}, {"consistency": 0.1, "consistency_from": 0.0}),
    "distil": ({}, {"supervise": "distil", "grad": 3}),
    "DiT": (DIT, {}),
    "DiT that grows": (DIT | {"early_head": 1}, {"grow": [[0, 1], [0.5, 3]]}),
}
NUMBERS = range(3)  # of images


def log(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def state(checkpoint) -> dict:
    """All that a checkpoint holds."""
    weights = {path.parent.name: load_pretrained(path.parent).state_dict() for path in checkpoint.glob("*/config.json")}
    return {**weights, "trainer": load_trainer(checkpoint)}


@pytest.fixture(scope="module")
def trained(tiny_store, tmp_path_factory):
    """The source and the checkpoint of an FPDM that is no longer what it began as."""
    config = ExperimentConfig(
        model=ModelConfig(name="FPDM-XS/4", hidden_size=32, num_heads=2),
        diffusion=DiffusionConfig(**FLOW),
        sjfb=SJFBConfig(no_grad=2, grad=2),
        data=DataConfig(latents=str(tiny_store)),
        optim=OptimConfig(steps=6, batch_size=8, lr=1e-2),
        run=RunConfig(results=str(tmp_path_factory.mktemp("flow"))),
    )
    run = train(config)
    return load_source(run), find_checkpoint(run)


@pytest.mark.parametrize("way", WAYS)
def test_trained_and_sampled(experiment, way):
    model, sjfb = WAYS[way]
    run = train(experiment(model=model, diffusion=FLOW, sjfb=sjfb, run={"log_every": 1}))
    losses = [line["loss"] for line in log(run)]
    assert all(0.5 < loss < 4 for loss in losses)  # of noise - image, whose values are about 1
    assert all(line["vb"] == 0 and line["loss_t2"] > 0 for line in log(run) if "loss_t2" in line)
    source = load_source(run)
    assert source.process.kind == "flow"
    given = {"iterations": 2} if source.iterative else {}
    images = sample(source, 2, steps=3, sampler="heun", shift=2.0, **given)
    assert images.shape[0] == 2 and images.dtype == torch.uint8


@pytest.mark.parametrize(("model", "precision"), [({}, "no"), ({}, "bf16"), (DIT, "no")], ids=["FPDM", "bf16", "DiT"])
def test_resumed_bit_for_bit(experiment, model, precision, assert_same):
    """Weights, averages, optimizer, and what else a checkpoint holds."""
    config = experiment(model=model, diffusion=FLOW, run={"mixed_precision": precision, "checkpoint_every": 2})
    run = train(config)
    whole = state(run / "checkpoints" / "0000004")
    shutil.rmtree(run / "checkpoints" / "0000004")
    assert train(config, resume=str(run / "checkpoints" / "0000002")) == run
    assert {"model", "ema", "trainer"} <= whole.keys()
    assert_same(state(run / "checkpoints" / "0000004"), whole)


def test_validated_and_previewed(experiment, held_out_store):
    """The loss on held-out latents falls, from that of predicting nothing: 1 of the noise, and the latents' square."""
    config = experiment(
        diffusion=FLOW,
        optim={"steps": 24, "lr": 1e-2, "ema_decay": 0.5},
        run={"validate_every": 12, "preview_every": 24},
        validation={"latents": str(held_out_store)},
    )
    run = train(config, on_preview=make_preview(config))
    first, last = (line["val_loss"] for line in log(run) if "val_loss" in line)
    assert 0.9 < last < first < 1.3 and (run / "samples" / "0000024.png").is_file()


def test_a_run_does_not_change_its_process(experiment):
    run = train(experiment(optim={"steps": 1}))
    with pytest.raises(ValueError, match=r"diffusion\.process was discrete, is flow"):
        train(experiment(diffusion={"process": "flow"}, optim={"steps": 2}), resume=str(run))


def test_internal_guidance_in_one_step_is_its_formula(trained):
    """From t = 1 to 0, x0 = noise - v, and the exit after one update is what the model predicts with one."""
    source, checkpoint = trained
    labels = image_labels(0, NUMBERS, source.num_classes, None)
    noise = image_noise(0, NUMBERS, 0, source.latent_shape)
    model = load_pretrained(checkpoint / "ema")
    with torch.no_grad():
        early, last = (model(noise, torch.full((3,), 1000.0), labels, iterations=count).prediction for count in (1, 3))
    expected = source.codec.decode(noise - (early + 2.5 * (last - early)))
    expected = ((expected + 1) * 127.5).round().clamp(0, 255)
    images = sample(source, 3, steps=1, iterations=3, sampler="euler", internal_guidance=2.5)
    assert (images - expected).abs().max() <= 1 and not torch.equal(images, sample(source, 3, steps=1, iterations=3))


def test_ways_of_solving_and_their_trace(trained):
    """Anderson acceleration and plain iteration meet at the fixed point; adaptive allocation stops where it is told."""
    source, _ = trained
    exact = sample(source, 3, steps=4, iterations=60, reuse=False).int()

    def far(**settings) -> int:  # in grey levels
        return int((sample(source, 3, steps=4, reuse=False, **settings).int() - exact).abs().max())

    assert far(anderson=3, iterations=20) <= 1 and far(iterations=1) > 1
    assert far(allocation="adaptive", tolerance=1e-5, iterations=40) <= 1
    config = SamplingConfig(steps=4, iterations=6, reuse=False, allocation="adaptive", tolerance=0.05, shift=2.0)
    plan, recorder = plan_for(source, config), Recorder()
    sample_images(source, config, plan, NUMBERS, recorder)
    trace = recorder.trace(plan)
    assert trace.timesteps == pytest.approx([1, 6 / 7, 2 / 3, 0.4])  # 2 t / (1 + t)
    done = np.isfinite(trace.residuals).sum(-1)
    assert done.min() >= 1 and (trace.residuals[..., 0][done > 1] > 0.05).all()


def test_an_exported_flow_samples_alike(trained, tmp_path):
    source, checkpoint = trained
    model, facts, _ = load_checkpoint(checkpoint)
    export_model(tmp_path / "exported", model, facts, None, {})
    settings = {"steps": 4, "iterations": 2, "sampler": "sde", "cfg_scale": 2.0, "cfg_interval": [0.2, 0.8]}
    assert torch.equal(sample(load_source(tmp_path / "exported"), 3, **settings), sample(source, 3, **settings))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_from_weights_with_muon_and_profiles(experiment, trained):
    """A flow from a discrete model's weights too: the difference is told."""
    _, checkpoint = trained
    optim = {"steps": 2, "warmup": 0, "lr": 1e-12, "optimizer": "muon", "muon_lr": 1e-12, "ema_profiles": [0.1],
             "ema_snapshot_every": 1}  # fmt: skip
    config = experiment(diffusion={"process": "flow"}, optim=optim)
    run = train(config, init=Init(str(checkpoint), "ema", None, load_checkpoint))
    theirs = load_pretrained(checkpoint / "ema").state_dict()
    for kind in ("model", "ema", "ema-power-0.1"):
        ours = load_pretrained(find_checkpoint(run) / kind).state_dict()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)
    assert len(list((run / "snapshots").iterdir())) == 2
    discrete = train(experiment(optim={"steps": 1}))
    told = train(config, init=Init(str(discrete), "ema", None, load_checkpoint))
    says = "the weights are of another process (process was discrete, is flow)"
    assert says in (told / "log.txt").read_text() and says not in (run / "log.txt").read_text()
