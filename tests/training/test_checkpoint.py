import os

import pytest
import torch

from fpdm.models import build_model, load_pretrained
from fpdm.training.checkpoint import (
    find_checkpoint,
    load_trainer,
    random_states,
    restore_random_states,
    save_checkpoint,
)


def save(run, step, value=0.0):
    model = build_model("DiT-XS/4", input_size=8, hidden_size=32, num_heads=2, depth=1, num_classes=2)
    torch.nn.init.constant_(model.final_layer.linear.bias, value)
    return save_checkpoint(
        run, step, model, model, {"step": step, "nested": [torch.ones(2), None]}, {"codec": "pixels"}
    )


def test_layout_and_latest(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20, value=2.0)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["0000010", "0000020", "latest"]
    assert (folder / "latest").resolve().name == "0000020"
    assert load_pretrained(folder / "latest" / "ema").final_layer.linear.bias[0].item() == 2.0
    assert load_trainer(folder / "0000010")["step"] == 10
    for source in (tmp_path, folder, folder / "latest", folder / "0000020"):
        assert find_checkpoint(source).name == "0000020"


@pytest.mark.parametrize("moment", ["model", "trainer", "rename"])
def test_failure_while_saving_leaves_the_last_one_whole(tmp_path, monkeypatch, moment):
    save(tmp_path, 10, value=1.0)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {"model": (torch.nn.Module, "state_dict"), "trainer": (torch, "save"), "rename": (os, "replace")}[moment]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(*target, fail)
        save(tmp_path, 20)
    assert find_checkpoint(tmp_path).name == "0000010"
    assert load_pretrained(find_checkpoint(tmp_path) / "model").final_layer.linear.bias[0].item() == 1.0
    assert save(tmp_path, 20).name == "0000020"  # the remains are no hindrance


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_failure_while_replacing_a_step_leaves_a_checkpoint(tmp_path, monkeypatch, rename):
    """Saving a step again takes several renames; a stop between any two leaves one of the two versions."""
    save(tmp_path, 10, value=1.0)
    calls, original = [], os.replace

    def fail(*args):
        calls.append(args)
        if len(calls) == rename:
            raise OSError(5, "Input/output error")
        original(*args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "replace", fail)
        save(tmp_path, 10, value=2.0)
    assert load_pretrained(find_checkpoint(tmp_path) / "ema").final_layer.linear.bias[0].item() in (1.0, 2.0)
    save(tmp_path, 10, value=3.0)
    assert load_pretrained(find_checkpoint(tmp_path) / "ema").final_layer.linear.bias[0].item() == 3.0


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, value=1.0)
    save(tmp_path, 10, value=3.0)
    assert load_pretrained(find_checkpoint(tmp_path) / "ema").final_layer.linear.bias[0].item() == 3.0


def test_random_states_go_round(tmp_path):
    import random

    import numpy as np

    torch.save(random_states(), tmp_path / "states.pt")
    first = (random.random(), np.random.rand(), float(torch.rand(())))
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True), 0)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == first


def test_damaged_trainer_state_is_said(tmp_path):
    path = save(tmp_path, 10) / "trainer.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"trainer\.pt is damaged .*resume from an earlier checkpoint"):
        load_trainer(path.parent)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
