import itertools
import json
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from fpdm.config import OptimConfig
from fpdm.models import load_pretrained
from fpdm.training.checkpoint import find_checkpoint, load_trainer, point_latest
from fpdm.training.loop import TrainingDiverged, train
from fpdm.training.optimizers import learning_rate

RATES = ("images_per_s", "block_passes_per_s", "tflops", "peak_memory_gib")


def state(checkpoint):
    """Everything a checkpoint holds, as nested containers of tensors."""
    weights = {name: load_pretrained(checkpoint / name).state_dict() for name in ("model", "ema")}
    return {**weights, "trainer": load_trainer(checkpoint)}


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


MODERN = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "positions": "rotary", "exclude_own_value": True}


@pytest.mark.parametrize(
    "model", [{}, {"name": "DiT-XS/4", "depth": 2}, MODERN], ids=["FPDM", "DiT", "FPDM of modern blocks"]
)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(experiment, tmp_path, model, precision, assert_same):
    run_settings = {"checkpoint_every": 10, "mixed_precision": precision}
    config = experiment(model=model, optim={"steps": 20, "lr_schedule": "linear"}, run=run_settings)
    whole = train(config)
    cut = tmp_path / "runs" / f"001-{whole.name[4:]}"
    shutil.copytree(whole, cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "0000020")
    (cut / "checkpoints" / "latest").unlink()
    (cut / "checkpoints" / "latest").symlink_to("0000010")

    resumed = train(config, resume="latest")
    assert resumed == cut
    assert_same(state(whole / "checkpoints" / "0000020"), state(cut / "checkpoints" / "0000020"))
    strip = lambda lines: [{k: v for k, v in line.items() if k not in RATES} for line in lines]  # noqa: E731
    assert strip(log(whole)) == strip(log(cut))


def test_log_of_a_run_stopped_amid_an_interval_is_the_same(experiment, tmp_path):
    """Checkpoint at step 10, log lines at 7 and 14: the second is a mean over steps on both sides of the stop."""
    config = experiment(optim={"steps": 14}, run={"checkpoint_every": 10, "log_every": 7})
    whole = train(config)
    cut = tmp_path / "runs" / f"001-{whole.name[4:]}"
    shutil.copytree(whole, cut, symlinks=True)
    (cut / "checkpoints" / "latest").unlink()
    (cut / "checkpoints" / "latest").symlink_to("0000010")
    train(config, resume=str(cut))
    for ours, theirs in zip(log(cut), log(whole), strict=True):
        for name in ("step", "loss", "mse", "vb", "loss_t1", "loss_t4", "grad_norm", "grad_norm_max", "residual"):
            assert ours[name] == theirs[name], name


def test_checkpoint_whose_step_was_skipped_is_written_at_the_next(experiment, poison_losses):
    poison_losses(lambda call: call == 4)
    run = train(experiment(optim={"steps": 7}, run={"checkpoint_every": 4}))
    assert sorted(path.name for path in (run / "checkpoints").glob("0*")) == ["0000005", "0000007"]


def test_steps_are_skipped_where_the_optimizer_knows_no_flag(experiment, monkeypatch):
    """That of MPS: the host asks whether gradients are finite, and the path is the same."""
    from fpdm.processes import Diffusion
    from fpdm.training import learner

    original, runs = Diffusion.losses, []
    for flag in (True, False):
        calls = []

        def poisoned(self, *args, calls=calls):
            calls.append(1)
            losses = original(self, *args)
            return losses._replace(total=losses.total * math.nan) if len(calls) in (2, 5) else losses

        monkeypatch.setattr(Diffusion, "losses", poisoned)
        monkeypatch.setattr(learner, "skips_by_flag", lambda device, flag=flag: flag)
        runs.append(train(experiment(optim={"steps": 7}, run={"log_every": 1})))
    assert log(runs[0])[-1]["skipped"] == log(runs[1])[-1]["skipped"] == 2
    assert [line["loss"] for line in log(runs[0]) if "loss" in line] == [
        line["loss"] for line in log(runs[1]) if "loss" in line
    ]
    for name in ("model", "ema"):
        weights = [(run / "checkpoints" / "latest" / name / "model.safetensors").read_bytes() for run in runs]
        assert weights[0] == weights[1]


def test_run_that_is_at_its_end_says_so(experiment):
    run = train(experiment())
    before = (run / "log.jsonl").read_text()
    assert train(experiment(), resume="auto") == run
    assert "resumed at step 4 of 4: nothing left to do" in (run / "log.txt").read_text()
    assert (run / "log.jsonl").read_text() == before


@pytest.mark.parametrize("source", ["auto", "latest", "run", "checkpoint"])
def test_a_run_that_went_on_while_another_program_waited_for_it(experiment, tmp_path, monkeypatch, source):
    """The checkpoint that was the last one is gone by then, and what was written since stays."""
    config = experiment(optim={"steps": 6}, run={"checkpoint_every": 2, "log_every": 1})
    run = train(config)
    checkpoints, written = run / "checkpoints", (run / "log.jsonl").read_text()
    point_latest(checkpoints / "0000002")
    for step in (4, 6):
        (checkpoints / f"{step:07d}").rename(tmp_path / str(step))

    @contextmanager
    def only_writer(folder):
        assert folder == run
        (tmp_path / "6").rename(checkpoints / "0000006")
        point_latest(checkpoints / "0000006")
        shutil.rmtree(checkpoints / "0000002")
        yield

    monkeypatch.setattr("fpdm.training.open_run.only_writer", only_writer)
    if source == "checkpoint":
        with pytest.raises(FileNotFoundError, match="0000002 does not exist"):
            train(config, resume=str(checkpoints / "0000002"))
    else:
        assert train(config, resume=str(run) if source == "run" else source) == run
    assert (checkpoints / "latest").resolve() == checkpoints / "0000006"
    assert (run / "log.jsonl").read_text() == written


@pytest.mark.parametrize(
    "part",
    [
        {"random": [{"python": [3, [], None], "numpy": ["MT19937", [2**40] * 624, 0, 0, 0.0], "torch": None}]},
        {"optimizer": {"state": {}, "param_groups": [3]}},
        {"meter": {"sums": "text"}},
    ],
    ids=["random", "optimizer", "meter"],
)
def test_a_state_that_cannot_be_restored_is_named(experiment, part):
    """As a flipped bit makes it, in a pickle that can still be read."""
    run = train(experiment(optim={"steps": 2}))
    path = find_checkpoint(run) / "trainer.pt"
    torch.save(torch.load(path, weights_only=True) | part, path)
    with pytest.raises(ValueError, match=r"trainer\.pt is damaged \(.*\); resume from an earlier checkpoint"):
        train(experiment(optim={"steps": 4}), resume=str(run))


@pytest.mark.parametrize("name", ["log.jsonl", "log.txt"])
def test_log_on_a_full_disk_is_told_of(experiment, tmp_path, monkeypatch, capfd, name):
    """/dev/full takes nothing, as a full disk."""
    from fpdm.training import runlog

    original = runlog.new_run

    def with_full_log(results, of):
        run = original(results, of)
        (run / name).symlink_to("/dev/full")
        return run

    monkeypatch.setattr("fpdm.training.open_run.new_run", with_full_log)
    with pytest.raises(OSError, match=rf"{name} cannot be written .*No space left.*checkpoints are intact"):
        train(experiment())
    assert "Traceback" not in capfd.readouterr().err


def test_log_and_its_name_are_on_the_disk_before_a_checkpoint(experiment, monkeypatch):
    """Of the first sync of log.jsonl and of its folder, and of the link `latest`: in this order."""
    synced, original = [], os.fsync

    def fsync(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    run = train(experiment()).resolve()
    log = synced.index(run / "log.jsonl")
    assert synced[log + 1 :].index(run) < synced[log + 1 :].index(run / "checkpoints")


def test_accumulation_is_the_whole_batch(experiment):
    whole, parts = (
        train(experiment(optim={"steps": 5, "micro_batch_size": micro})) / "checkpoints" / "latest" for micro in (8, 2)
    )
    for a, b in zip(
        load_pretrained(whole / "model").parameters(), load_pretrained(parts / "model").parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_loss_falls_and_the_log_says_so(experiment, pixel_store):
    run = train(experiment(optim={"steps": 120, "lr": 3e-3}, run={"log_every": 20}, data={"latents": str(pixel_store)}))
    lines = log(run)
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100, 120]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    names = "loss mse vb loss_t1 loss_t2 loss_t3 loss_t4 grad_norm grad_norm_max residual images_per_s"
    for name in [*names.split(), "block_passes_per_s", "tflops", "peak_memory_gib", "lr", "n", "m", "skipped"]:
        assert all(math.isfinite(line[name]) for line in lines), name
    assert all(line["grad_norm_max"] >= line["grad_norm"] and line["residual"] > 0 for line in lines)
    text = (run / "log.txt").read_text()
    assert "FixedPointDiT" in text and "block passes forward per image" in text and "samples at a time" not in text


def test_run_folder_explains_itself(experiment, tiny_vae):
    run = train(experiment(run={"name": "mine"}))
    assert run.name == "000-mine"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["optim"]["steps"] == 4 and config["diffusion"]["parametrisation"] == "v"
    checkpoint = find_checkpoint(run)
    assert checkpoint.name == "0000004"
    facts = json.loads((checkpoint / "ema" / "sampling.json").read_text())
    assert facts["class_names"] == ["ant", "bee", "cow"] and facts["codec"] == str(tiny_vae)
    assert train(experiment(run={"name": "mine"})).name == "001-mine"


def test_preview_gets_the_average(experiment):
    seen = []
    run = train(
        experiment(optim={"steps": 6}, run={"preview_every": 3}),
        on_preview=lambda run, step, model: seen.append((run, step, model.training)),
    )
    assert seen == [(run, 3, False), (run, 6, False)]


def test_non_finite_steps_are_skipped_counted_and_finally_stop(experiment, poison_losses):
    calls = poison_losses(lambda call: call == 2 or call >= 5)
    run = train(experiment(run={"log_every": 1}))
    assert [line["skipped"] for line in log(run)] == [0, 1, 1, 1]
    assert ["loss" in line for line in log(run)] == [True, False, True, True]  # a skipped step has none
    assert all(math.isfinite(value) for line in log(run) for value in line.values())
    weights = load_pretrained(find_checkpoint(run) / "model").state_dict()
    assert all(value.isfinite().all() for value in weights.values())

    calls.clear()
    with pytest.raises(
        TrainingDiverged, match=r"3 steps in a row, .* had gradients that are not finite.*Lower optim\.lr"
    ):
        train(experiment(optim={"steps": 20, "max_skipped": 3}, run={"checkpoint_every": 1}))
    last = find_checkpoint(run.with_name(run.name.replace("000-", "001-", 1)))
    assert last.name == "0000004"  # the last good one


def test_divergence_between_log_lines_is_not_missed(experiment, poison_losses):
    """Three bad steps in a row, the third of them neither logged nor followed by a bad one."""
    calls = poison_losses(lambda call: 5 <= call <= 7)
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        train(experiment(optim={"steps": 20, "max_skipped": 3}, run={"log_every": 8}))
    assert len(calls) == 8


def test_resuming_another_experiment_is_refused(experiment):
    run = train(experiment())
    with pytest.raises(ValueError, match=r"another experiment \(model\.pre_depth was None, is 2\)"):
        train(experiment(model={"pre_depth": 2}), resume=str(run))
    with pytest.raises(FileNotFoundError, match="no run named other"):
        train(experiment(run={"name": "other"}), resume="latest")


def test_settings_that_an_older_run_did_not_have_were_their_defaults(experiment):
    """Its weights would fit the other network too."""
    run = train(experiment(optim={"steps": 2}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"].pop("norm", "missing") is None and config["model"].pop("qk_norm", "missing") is None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"another experiment \(model\.norm was None, is rms\)"):
        train(experiment(model={"norm": "rms"}), resume=str(run))
    train(experiment(), resume=str(run))


def test_resuming_with_other_data_or_another_order_is_refused(experiment, tmp_path, tiny_store, pixel_store):
    run = train(experiment())
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match="are not those the run was trained on"):
        train(experiment(data={"latents": str(pixel_store)}), resume=str(run))
    for section, name, value in (("optim", "batch_size", 4), ("run", "seed", 1), ("sjfb", "grad", 3)):
        with pytest.raises(ValueError, match=rf"another experiment \({section}\.{name} was"):
            train(experiment(**{section: {name: value}}), resume=str(run))
    assert (run / "config.yaml").read_text() == before  # a refusal leaves no trace
    shutil.copytree(tiny_store, tmp_path / "moved")
    assert train(experiment(data={"latents": str(tmp_path / "moved")}), resume=str(run)) == run


def test_changed_settings_reach_the_optimizer(experiment):
    run = train(experiment(optim={"steps": 3, "warmup": 6}))
    (group,) = load_trainer(find_checkpoint(run))["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.5e-3), 0.0)
    train(experiment(optim={"steps": 5, "warmup": 0, "weight_decay": 0.1}), resume=str(run))
    (group,) = load_trainer(find_checkpoint(run))["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)


def test_clipping_scales_the_gradient_down(experiment):
    """Adam's second moment is made of squared gradients: clipping to a thousandth shrinks it to a millionth."""
    moments = []
    for clip in (None, 1e-6):
        run = train(experiment(optim={"steps": 1, "clip_norm": clip}))
        state = load_trainer(find_checkpoint(run))["optimizer"]["state"]
        moments.append(sum(float(s["exp_avg_sq"].sum()) for s in state.values()))
    # one step leaves (1 - beta2) * gradient^2, whose sum is (1 - beta2) * norm^2
    norm = log(run)[0]["grad_norm"]
    assert moments[0] == pytest.approx(1e-3 * norm**2, rel=1e-3)
    assert moments[1] == pytest.approx(1e-3 * 1e-12, rel=1e-2)


def test_checkpoint_outside_a_run_cannot_be_resumed(experiment, tmp_path):
    run = train(experiment())
    shutil.copytree(find_checkpoint(run), tmp_path / "alone" / "0000004")
    with pytest.raises(FileNotFoundError, match="not inside a run's folder"):
        train(experiment(), resume=str(tmp_path / "alone" / "0000004"))


def test_more_steps_may_be_added(experiment):
    run = train(experiment())
    again = train(experiment(optim={"steps": 6}), resume=str(run))
    assert again == run and find_checkpoint(run).name == "0000006"
    assert "resumed at step 4 of 6" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optim": {"micro_batch_size": 3}}, "micro_batch_size=3: does not divide the 8"),
        ({"run": {"mixed_precision": "fp16"}}, "fp16 needs a GPU"),
        ({"data": {"latents": "UNMIRRORED"}}, r"data\.mirror=true: .* holds no mirror images"),
        ({"data": {"latents": "/nowhere"}}, r"no manifest\.json"),
        ({"model": {"name": "FPDM-XS/3"}}, "FAMILY-SIZE/PATCH"),
    ],
)
def test_bad_settings_stop_before_training(experiment, settings, says, tmp_path, unmirrored_store):
    if settings.get("data", {}).get("latents") == "UNMIRRORED":
        settings = {"data": {"latents": str(unmirrored_store)}}
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train(experiment(**settings))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"shape": [4, 16, 16]}, r"data\.shape=\[4, 16, 16\]: the latents in .* have \[4, 8, 8\]"),
        ({"classes": 10}, r"data\.classes=10: .* have 3"),
        ({"scale": 0.18215}, r"data\.scale=0\.18215: .* have 0\.5"),
        ({"vae": "pixels"}, r"data\.vae=pixels: the latents in .* were made with"),
        ({"vae": "/no/such/vae"}, r"data\.vae=/no/such/vae: .* were made with .* if it is, set data\.vae to"),
    ],
)
def test_store_that_is_not_what_the_config_asks_for(experiment, data, says, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train(experiment(data=data))
    assert not (tmp_path / "runs").exists()


def test_store_that_fits_may_have_its_vae_elsewhere(experiment, tiny_vae, tmp_path):
    shutil.copytree(tiny_vae, tmp_path / "moved")
    data = {"shape": [4, 8, 8], "classes": 3, "scale": 0.5, "vae": str(tmp_path / "moved")}
    assert find_checkpoint(train(experiment(data=data))).name == "0000004"


def test_latents_far_from_unit_deviation_are_warned_of(experiment, tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "loud")
    fields = json.loads((tmp_path / "loud" / "manifest.json").read_text())
    (tmp_path / "loud" / "manifest.json").write_text(json.dumps(fields | {"std": 5.5}))
    text = (train(experiment(data={"latents": str(tmp_path / "loud")})) / "log.txt").read_text()
    assert "standard deviation is 5.500, outside 0.7..1.3" in text


def test_resume_auto_goes_on_or_begins(experiment):
    first = train(experiment(), resume="auto")
    assert first.name.startswith("000-")
    assert train(experiment(optim={"steps": 6}), resume="auto") == first
    assert find_checkpoint(first).name == "0000006"


def test_recomputation_follows_the_same_path(experiment, assert_same):
    plain, recomputed = (train(experiment(run={"gradient_checkpointing": on})) for on in (False, True))
    assert_same(state(find_checkpoint(plain)), state(find_checkpoint(recomputed)))


def test_checkpoints_are_thinned_out(experiment):
    run = train(experiment(optim={"steps": 10}, run={"checkpoint_every": 1, "keep_last": 2, "keep_every": 4}))
    names = sorted(path.name for path in (run / "checkpoints").glob("0*"))
    assert names == ["0000004", "0000008", "0000009", "0000010"]


def test_tensorboard_gets_the_log(experiment):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(experiment(run={"tracker": "tensorboard"}))
    (events,) = run.glob("events.*")
    reader = event_accumulator.EventAccumulator(str(events)).Reload()
    values = [event.value for event in reader.Scalars("loss")]
    assert values == pytest.approx([line["loss"] for line in log(run)])


def test_wandb_stays_offline_unless_told(experiment, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = train(experiment(run={"tracker": "wandb"}))
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert any(offline.glob("*.wandb"))
    # and a resumed run is the same one there
    identity = (run / "wandb-id.txt").read_text()
    assert offline.name.endswith(f"-{identity}")
    assert train(experiment(run={"tracker": "wandb"}, optim={"steps": 6}), resume=str(run)) == run
    assert all(path.name.endswith(f"-{identity}") for path in (run / "wandb").glob("offline-run-*"))


def test_missing_tracker_is_said(experiment, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"run\.tracker=wandb: the package is not installed; pip install"):
        train(experiment(run={"tracker": "wandb"}))


def test_one_class_has_no_label_to_drop(experiment, image_folder, tmp_path):
    from fpdm.config import EncodeConfig
    from fpdm.data.codec import open_codec
    from fpdm.data.encode import encode
    from fpdm.data.images import open_images

    config = EncodeConfig(resolution=8)
    encode(open_images(image_folder / "bee"), open_codec("pixels"), tmp_path / "s", config, torch.device("cpu"))
    data = {"latents": str(tmp_path / "s")}
    with pytest.raises(ValueError, match=r"class_dropout=0\.1: the data has one class"):
        train(experiment(data=data))
    run = train(experiment(data=data, model={"class_dropout": 0.0}))
    model = load_pretrained(find_checkpoint(run) / "ema")
    assert (model.num_classes, model.in_channels) == (1, 3)


def test_learning_rate_is_a_function_of_the_step():
    optim = OptimConfig(steps=110, warmup=10, lr=1.0, lr_schedule="linear")
    assert [learning_rate(optim, s) for s in (0, 4, 9, 10, 60, 109)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.01])
    optim.lr_schedule = "cosine"
    assert learning_rate(optim, 60) == pytest.approx(0.5)
    optim.lr_schedule = "constant"
    assert learning_rate(optim, 109) == 1


def test_cooldown_ends_a_constant_rate():
    """1 - sqrt over the last 16 of 116 steps: the first of them still has the full rate, the last 1 - sqrt(15/16)."""
    optim = OptimConfig(steps=116, warmup=10, lr=1.0, cooldown=16)
    rates = [learning_rate(optim, step) for step in (0, 9, 10, 99, 100, 101, 104, 109, 115)]
    assert rates == pytest.approx([0.1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 1 - math.sqrt(15 / 16)])
    whole = OptimConfig(steps=4, lr=2.0, cooldown=4)  # nothing but a cool-down
    assert [learning_rate(whole, step) for step in (0, 1)] == pytest.approx([2, 1])


def test_fork_that_cools_down_equals_a_run_with_that_cooldown(experiment, tmp_path, assert_same):
    """Bit for bit: a long run, cooled down from its middle, is the short run; and the long one is as it was."""
    optim = {"steps": 12, "warmup": 2}
    whole = train(experiment(optim={**optim, "cooldown": 4}, run={"log_every": 3, "name": "whole"}))
    trunk = train(
        experiment(optim={**optim, "steps": 16}, run={"log_every": 3, "checkpoint_every": 8, "name": "trunk"})
    )
    before = {path: path.read_bytes() for path in trunk.rglob("*") if path.is_file()}
    config = experiment(optim={**optim, "cooldown": 4}, run={"log_every": 3, "name": "fork"})
    fork = train(config, fork=str(trunk / "checkpoints" / "0000008"))
    assert fork.name == "002-fork" and sorted(path.name for path in (fork / "checkpoints").glob("0*")) == ["0000012"]
    ours, theirs = (state(find_checkpoint(run)) for run in (fork, whole))
    assert_same(ours, theirs)
    strip = lambda run: [{k: v for k, v in line.items() if k not in RATES} for line in log(run)]  # noqa: E731
    assert strip(fork) == strip(whole) and [line["step"] for line in log(fork)] == [3, 6, 9, 12]
    assert {path: path.read_bytes() for path in trunk.rglob("*") if path.is_file()} == before
    assert "resumed at step 8 of 12" in (fork / "log.txt").read_text()


def test_fork_in_a_job_script_begins_once(experiment):
    """--fork with --resume auto: the first job forks, the next one resumes the fork."""
    trunk = train(experiment(run={"name": "trunk"}))
    fork = train(experiment(optim={"steps": 6}, run={"name": "fork"}), resume="auto", fork=str(trunk))
    again = train(experiment(optim={"steps": 8}, run={"name": "fork"}), resume="auto", fork=str(trunk))
    assert again == fork != trunk and find_checkpoint(fork).name == "0000008"
    assert find_checkpoint(trunk).name == "0000004"
    assert train(experiment(optim={"steps": 6}, run={"name": "fork"}), fork=str(trunk)).name == "002-fork"
    shutil.rmtree(trunk)  # which a fork that has begun does not need
    assert train(experiment(run={"name": "fork"}, optim={"steps": 7}), "auto", fork=str(trunk)).name == "002-fork"


def test_forks_that_cannot_be_are_refused(experiment, pixel_store, tmp_path):
    trunk = train(experiment(run={"name": "trunk"}))
    more = {"optim": {"steps": 6}, "run": {"name": "fork"}}
    shutil.copytree(find_checkpoint(trunk), tmp_path / "alone" / "0000004")
    refused = [
        ({**more, "model": {"pre_depth": 2}}, {}, r"--fork .*trunk: this is another experiment \(model\.pre_depth was"),
        ({**more, "run": {"name": "fork", "seed": 1}}, {}, r"another experiment \(run\.seed was 0, is 1"),
        ({**more, "data": {"latents": str(pixel_store)}}, {}, "--fork: the latents in .* are not those the run was"),
        (more, {"fork": str(tmp_path / "absent")}, "absent does not exist"),
        (more, {"fork": str(tmp_path / "alone" / "0000004")}, "--fork .*: not inside a run's folder"),
        (more, {"resume": "latest"}, "--resume latest with --fork .*: a fork is a new run"),
        (more, {"resume": str(trunk)}, "--resume .*trunk with --fork .*: a fork is a new run"),
        ({"run": {"name": "fork"}}, {}, r"already at step 4 of optim\.steps=4; .* set it higher"),
        ({**more, "run": {"name": "trunk"}}, {"resume": "auto"}, r"trunk is the run to fork; set run\.name"),
    ]
    before = (trunk / "config.yaml").read_text()
    for settings, options, says in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            train(experiment(**settings), **{"fork": str(trunk), **options})
    assert [path.name for path in trunk.parent.iterdir()] == ["000-trunk"]  # a refusal leaves no trace
    assert (trunk / "config.yaml").read_text() == before


@pytest.mark.parametrize("model", [{}, {"name": "DiT-XS/4", "depth": 2}], ids=["FPDM", "DiT"])
def test_host_does_not_wait_for_the_device_between_log_lines(experiment, model, host_reads):
    """However many steps a run has, it reads as many numbers from the device."""
    reads = []
    for steps in (4, 12):
        with host_reads() as counter:
            train(experiment(model=model, optim={"steps": steps, "warmup": 0}, run={"log_every": steps}))
        reads.append(counter.count)
    assert reads[0] == reads[1] > 0


def test_skipped_step_changes_nothing(experiment, monkeypatch):
    """Not the weights, and not the optimizer's count of steps."""
    from fpdm.processes import Diffusion
    from fpdm.training.ema import EMA

    losses, update, calls, weights = Diffusion.losses, EMA.update, [], []

    def poisoned(self, *args):
        calls.append(1)
        result = losses(self, *args)
        return result._replace(total=result.total * math.inf) if len(calls) == 4 else result

    def watched(self, model, *args):
        update(self, model, *args)
        weights.append([p.detach().clone() for p in model.parameters()])

    monkeypatch.setattr(Diffusion, "losses", poisoned)
    monkeypatch.setattr(EMA, "update", watched)
    run = train(experiment(optim={"steps": 5}))
    same = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(weights)]
    assert same == [False, False, True, False]
    states = load_trainer(find_checkpoint(run))["optimizer"]["state"].values()
    assert {float(state["step"]) for state in states} == {4}
