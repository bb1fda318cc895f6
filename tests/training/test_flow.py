"""Training on the linear interpolant: every way of training, resumed, validated, sampled."""

import json

import pytest
import torch

from fpdm.loading import load_source
from fpdm.sampling.generate import sample
from fpdm.training.loop import train

FLOW = {"process": "flow", "draw": "logit-normal"}
WAYS = {
    "plain": {},
    "consistency": {"consistency": 0.1, "consistency_from": 0.0},
    "distil": {"supervise": "distil", "grad": 3},
}


def log(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_trained_and_sampled(experiment, way):
    run = train(experiment(diffusion=FLOW, sjfb=WAYS[way], run={"log_every": 1}))
    losses = [line["loss"] for line in log(run)]
    assert all(0.5 < loss < 4 for loss in losses)  # of noise - image, whose values are about 1
    assert all(line["vb"] == 0 and line["loss_t2"] > 0 for line in log(run) if "loss_t2" in line)
    source = load_source(run)
    assert source.process.kind == "flow"
    images = sample(source, 2, steps=3, sampler="heun", shift=2.0, iterations=2)
    assert images.shape[0] == 2 and images.dtype == torch.uint8


def test_resumed_bit_for_bit(experiment):
    whole = train(experiment(diffusion=FLOW, optim={"steps": 4}))
    part = train(experiment(diffusion=FLOW, optim={"steps": 2}))
    part = train(experiment(diffusion=FLOW, optim={"steps": 4}), resume=str(part))
    states = [
        torch.load(run / "checkpoints" / "latest" / "trainer.pt", weights_only=False)["optimizer"]
        for run in (whole, part)
    ]
    for one, other in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_does_not_change_its_process(experiment):
    run = train(experiment(optim={"steps": 1}))
    with pytest.raises(ValueError, match=r"diffusion\.process was discrete, is flow"):
        train(experiment(diffusion={"process": "flow"}, optim={"steps": 2}), resume=str(run))
