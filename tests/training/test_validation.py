"""Validation while training: a loss that can be compared, and a training that does not notice it."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from accelerate import PartialState

from fpdm.config import EncodeConfig, ExperimentConfig, ValidationConfig
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore
from fpdm.models import load_pretrained
from fpdm.processes import Diffusion
from fpdm.seeding import key
from fpdm.training.checkpoint import find_checkpoint, load_trainer
from fpdm.training.loop import train
from fpdm.training.validation import HeldOut, validation_line

RATES = ("images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib")


@pytest.fixture
def held_out(tiny_store, held_out_store):
    """The held-out latents with settings of the section validation; the model is that of `tiny_run`."""
    manifest = LatentStore(tiny_store).manifest

    def make(**settings) -> HeldOut:
        config = ExperimentConfig(validation=ValidationConfig(latents=str(held_out_store), **settings))
        return HeldOut(config, manifest, Diffusion(), PartialState(cpu=True))

    return make


def log(run) -> list[dict]:
    """Without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


def weights(checkpoint) -> list[bytes]:
    return [(checkpoint / name / "model.safetensors").read_bytes() for name in ("model", "ema")]


def steps(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def test_loss_is_the_mean_over_the_held_out_latents(held_out, held_out_store, tiny_run):
    """One latent at a time, with the noise of its number and t spread by the golden ratio."""
    model, store, diffusion = (
        load_pretrained(find_checkpoint(tiny_run) / "ema"),
        LatentStore(held_out_store),
        Diffusion(),
    )
    by_quarter, whole = {}, []
    for i in range(11):
        record = store.read(np.array([i]))
        mean, std = record.moments()
        latent, noise = (
            torch.from_numpy(np.random.Generator(np.random.Philox(key("validation", kind, i))).standard_normal(
                (1, 4, 8, 8), np.float32))
            for kind in ("latent", "noise")
        )  # fmt: skip
        x0, t = mean + std * latent, torch.tensor([int(1000 * (i * (math.sqrt(5) - 1) / 2 % 1))])
        with torch.no_grad():
            prediction = model(diffusion.add_noise(x0, noise, t), t, record.labels, iterations=3).prediction
        loss = float(diffusion.losses(prediction, x0, noise, t).total)
        whole.append(loss)
        by_quarter.setdefault(f"val_loss_3it_t{int(t) // 250 + 1}", []).append(loss)
    found = held_out(iterations=[3]).loss(model)
    assert found["val_loss_3it"] == pytest.approx(np.mean(whole), rel=1e-5)
    for name, losses in by_quarter.items():
        assert found[name] == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(by_quarter) == 4


def test_loss_does_not_depend_on_the_batch_size(held_out, tiny_run):
    model = load_pretrained(find_checkpoint(tiny_run) / "ema")
    whole, *parts = (held_out(batch_size=size).loss(model) for size in (100, 1, 4))
    for part in parts:
        assert part == pytest.approx(whole, rel=1e-5)
    assert held_out().loss(model) == whole  # and is the same each time
    few = held_out(count=4)
    assert few.indices.tolist() == [0, 3, 7, 10] and few.loss(model)["val_loss"] != whole["val_loss"]


def test_a_few_latents_have_timesteps_of_every_quarter(held_out, tiny_run):
    """With t from the numbers in the store, a stride could have them nearly equal."""
    model = load_pretrained(find_checkpoint(tiny_run) / "ema")
    for count in (5, 6, 7):
        assert {f"val_loss_t{q}" for q in (1, 2, 3, 4)} <= held_out(count=count).loss(model).keys()


def test_an_fpdm_has_a_loss_for_each_number_of_iterations(held_out, tiny_run):
    found = held_out(iterations=[1, 4]).loss(load_pretrained(find_checkpoint(tiny_run) / "ema"))
    best = min((1, 4), key=lambda k: found[f"val_loss_{k}it"])
    assert found["val_loss"] == found[f"val_loss_{best}it"] != found[f"val_loss_{5 - best}it"]
    assert [found[f"val_loss_t{q}"] for q in (1, 2, 3, 4)] == [found[f"val_loss_{best}it_t{q}"] for q in (1, 2, 3, 4)]


def test_a_dit_has_one_loss(experiment, held_out_store):
    validation = {"latents": str(held_out_store), "count": 5}
    run = train(experiment(model={"name": "DiT-XS/4", "depth": 2}, run={"validate_every": 3}, validation=validation))
    lines = log(run)
    assert [line["step"] for line in lines] == [2, 3, 4]  # at multiples, and after the last step
    assert [[name for name in line if name.startswith("val_")] for line in lines[:2]] == [
        [], ["val_loss", "val_loss_t1", "val_loss_t2", "val_loss_t3", "val_loss_t4"],
    ]  # fmt: skip
    text = (run / "log.txt").read_text()
    assert f"step       3 validation  loss {lines[1]['val_loss']:.4g}, by t " in text


def test_the_line_for_people():
    values = {"val_loss": 0.5, "val_loss_t1": 0.25, "val_loss_2it": 0.5, "val_loss_2it_t1": 0.25, "val_loss_4it": 0.75,
              "val_fd": 12.0, "val_fd_2it": 12.0}  # fmt: skip
    assert validation_line(30, values) == (
        "step      30 validation  loss 0.5, by t 0.250 (2 it. 0.5, 4 it. 0.75)  FD 12 (2 it. 12)"
    )


def test_training_does_not_notice_a_validation(experiment, held_out_store):
    """Every bit of weights, averages, optimizer and random states is as without it."""
    validated, plain = (
        train(experiment(optim={"steps": 6}, validation={"latents": str(held_out_store)} if every else None,
                         run={"validate_every": every, "checkpoint_every": 3, "keep_best": every > 0}))
        for every in (2, 0)
    )  # fmt: skip
    for step in ("0000003", "0000006"):
        one, two = (run / "checkpoints" / step for run in (validated, plain))
        assert weights(one) == weights(two)
        a, b = load_trainer(one), load_trainer(two)
        assert str(a["optimizer"]) == str(b["optimizer"]) and str(a["random"]) == str(b["random"])
    assert [line["loss"] for line in log(validated)] == [line["loss"] for line in log(plain)]


def test_resumed_amid_validations_as_uninterrupted(experiment, held_out_store):
    """Killed in its third validation; the same log and the same best checkpoint result."""

    def config(name):
        return experiment(optim={"steps": 10}, validation={"latents": str(held_out_store)}, run={
            "name": name, "validate_every": 2, "log_every": 5, "checkpoint_every": 3, "keep_best": True, "keep_last": 1,
        })  # fmt: skip

    scores = [5.0, 3.0, 9.0, 4.0, 3.5]

    def measured(after: int):
        calls = iter(scores[after:])
        return lambda model: {"val_fd": next(calls)}

    def killed(model, calls=iter(scores[:2])):  # noqa: B008
        for value in calls:
            return {"val_fd": value}
        raise KeyboardInterrupt

    whole = train(config("whole"), measure=measured(0))
    with pytest.raises(KeyboardInterrupt):
        train(config("cut"), measure=killed)
    (cut,) = (path for path in whole.parent.iterdir() if path.name.endswith("-cut"))
    assert steps(cut) == ["0000004"] and log(cut)[-1]["step"] == 5
    assert train(config("cut"), resume="latest", measure=measured(2)) == cut
    assert log(cut) == log(whole) and [line["val_fd"] for line in log(cut) if "val_fd" in line] == scores
    for run in (whole, cut):
        assert os.readlink(run / "checkpoints" / "best") == "0000004" and steps(run) == ["0000004", "0000010"]
    for name in ("best", "latest"):
        assert weights(cut / "checkpoints" / name) == weights(whole / "checkpoints" / name)


def test_the_best_checkpoint_is_kept(experiment, held_out_store):
    """By the distance, whatever the loss says; with keep_last=1 the older ones go."""
    scores = iter([3.0, 1.0, 2.0, 1.5])
    run = train(
        experiment(optim={"steps": 8}, validation={"latents": str(held_out_store)},
                   run={"validate_every": 2, "checkpoint_every": 3, "keep_best": True, "keep_last": 1}),
        measure=lambda model: {"val_fd": next(scores)},
    )  # fmt: skip
    assert steps(run) == ["0000004", "0000008"]
    assert os.readlink(run / "checkpoints" / "best") == "0000004"
    assert load_trainer(run / "checkpoints" / "best")["step"] == 4
    assert load_trainer(find_checkpoint(run))["best"] == {"step": 4, "score": 1.0}


def test_a_fork_has_a_best_of_its_own(experiment, held_out_store):
    config = {"validation": {"latents": str(held_out_store)}}
    settings = {"validate_every": 2, "keep_best": True}
    run = train(experiment(run=settings, **config), measure=lambda model: {"val_fd": 1.0})
    fork = train(experiment(run={**settings, "name": "fork"}, optim={"steps": 6}, **config),
                 measure=lambda model: {"val_fd": 2.0}, fork=str(run))  # fmt: skip
    assert os.readlink(fork / "checkpoints" / "best") == "0000006"
    assert [line["val_fd"] for line in log(fork)] == [1.0, 1.0, 2.0]


def test_stores_that_do_not_fit_are_refused(
    experiment, tiny_store, pixel_store, held_out_store, tmp_path, image_folder
):
    shutil.copytree(tiny_store, tmp_path / "copy")
    (tmp_path / "two").mkdir()
    for name in ("ant", "bee"):
        shutil.copytree(image_folder / name, tmp_path / "two" / name)
    fields = json.loads((held_out_store / "manifest.json").read_text())
    shutil.copytree(held_out_store, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(fields | {"fingerprint": "0" * 16}))
    codec = open_codec(LatentStore(tiny_store).manifest.codec)
    encoding = EncodeConfig(resolution=16, mirror=False)
    encode(open_images(tmp_path / "two"), codec, tmp_path / "classes", encoding, torch.device("cpu"))
    for latents, says in (
        (tiny_store, "these are the latents that are trained on; encode images that are held out"),
        (tmp_path / "copy", "these are the latents that are trained on"),
        (pixel_store, r"its shape is \[3, 8, 8\], that of the training latents \[4, 8, 8\]; encode both"),
        (tmp_path / "other", "its fingerprint is 0000000000000000, that of the training latents"),
        (tmp_path / "classes", r"its class_names is \['ant', 'bee'\]"),
    ):
        with pytest.raises(ValueError, match=says):
            train(experiment(run={"validate_every": 2}, validation={"latents": str(latents)}))
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        train(experiment(run={"validate_every": 2}, validation={"latents": str(tmp_path / "absent")}))
    assert not (tmp_path / "runs").exists()  # a refusal leaves no trace
