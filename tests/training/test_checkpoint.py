import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fpdm.files import sync_to_disk
from fpdm.models import build_model, load_pretrained
from fpdm.training.checkpoint import (
    find_checkpoint,
    load_trainer,
    point_best,
    prune_checkpoints,
    random_states,
    restore_random_states,
    save_checkpoint,
)

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]


def save(run, step, value=0.0, trainer=None):
    model = build_model("DiT-XS/4", input_size=8, hidden_size=32, num_heads=2, depth=1, num_classes=2)
    torch.nn.init.constant_(model.final_layer.linear.bias, value)
    trainer = {"step": step, "nested": [torch.ones(2), None], **(trainer or {})}
    return save_checkpoint(run, step, {"model": model, "ema": model}, trainer, {"codec": "pixels"})


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
    says = r"No space" if moment == "rename" else r"0000020 could not be written .*No space.*one, 0000010, is intact"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=says):
        patch.setattr(*target, fail)
        save(tmp_path, 20)
    assert find_checkpoint(tmp_path).name == "0000010"
    assert load_pretrained(find_checkpoint(tmp_path) / "model").final_layer.linear.bias[0].item() == 1.0
    assert save(tmp_path, 20).name == "0000020"  # the remains are no hindrance


@contextmanager
def file_size_limit(size):
    """Writing fails beyond so many bytes of a file: a real error of the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", ["model", "trainer"])
def test_writing_that_the_system_refuses(tmp_path, part):
    trainer = {"optimizer": torch.zeros(300_000)}
    save(tmp_path, 10, value=1.0, trainer=trainer)
    weights, state = (find_checkpoint(tmp_path) / name for name in ("model/model.safetensors", "trainer.pt"))
    assert weights.stat().st_size < state.stat().st_size
    size = weights.stat().st_size // 2 if part == "model" else state.stat().st_size // 2 + 50_000
    assert (size < weights.stat().st_size) == (part == "model")
    says = "0000020 could not be written .*0000010, is intact.*make room"
    with pytest.raises(OSError, match=says), file_size_limit(size):
        save(tmp_path, 20, trainer=trainer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000010", "latest"]
    assert load_pretrained(find_checkpoint(tmp_path) / "ema").final_layer.linear.bias[0].item() == 1.0
    assert save(tmp_path, 20, trainer=trainer).name == "0000020"


def test_full_disk(tmp_path):
    """A file system of 1 MiB, really full; skipped where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        save(disk, 10, value=1.0)
        with (disk / "ballast").open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file.fileno(), bytes(4096))
        with pytest.raises(OSError, match=r"0000020 could not be written .*010, is intact. 0\.0 GiB are free there"):
            save(disk, 20)
        assert load_pretrained(find_checkpoint(disk) / "ema").final_layer.linear.bias[0].item() == 1.0
        (disk / "ballast").unlink()
        assert save(disk, 20).name == "0000020"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [(None, None, [10, 20, 30, 40, 50]), (1, None, [50]), (2, None, [40, 50]), (1, 20, [20, 40, 50])],
)
def test_which_checkpoints_are_kept(tmp_path, last, every, kept):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
        prune_checkpoints(tmp_path, step, last, every)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{step:07d}" for step in kept), "latest"]
    assert find_checkpoint(tmp_path).name == "0000050"


def test_pruned_names_are_gone_from_the_disk_before_their_content(tmp_path, monkeypatch):
    """Otherwise, a power failure may leave a folder that is named as a checkpoint, and empty."""
    done = []

    def told(name, original):
        def call(*arguments, **options):
            done.append((name, *(Path(argument).name for argument in arguments[:1])))
            return original(*arguments, **options)

        return call

    save(tmp_path, 10)
    save(tmp_path, 20)
    monkeypatch.setattr("fpdm.training.checkpoint.sync_to_disk", told("sync", sync_to_disk))
    monkeypatch.setattr("os.replace", told("rename", os.replace))
    monkeypatch.setattr("shutil.rmtree", told("remove", shutil.rmtree))
    prune_checkpoints(tmp_path, 20, keep_last=1, keep_every=None)
    assert done == [("rename", "0000010"), ("sync", "checkpoints"), ("remove", ".removed-0000010")]


def test_the_best_one_stays(tmp_path):
    for step in (10, 20, 30, 40):
        written = save(tmp_path, step)
        if step in (10, 20):
            point_best(written)
        prune_checkpoints(tmp_path, step, keep_last=1, keep_every=None)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"0000020", "0000040", "best", "latest"}
    assert find_checkpoint(tmp_path).name == "0000040"
    assert find_checkpoint(tmp_path / "checkpoints" / "best").name == "0000020"


def test_pruning_after_going_back(tmp_path):
    """Resumed from 10, while 20 and 30 are still there: the one just written is never removed for them."""
    for step in (10, 20, 30, 12):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 12, keep_last=1, keep_every=None)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("0*")) == ["0000012", "0000020", "0000030"]
    assert find_checkpoint(tmp_path).name == "0000012"


def test_version_that_was_replaced_goes_before_the_new_one(tmp_path):
    """A kill between the new checkpoint's renaming and the old version's deletion leaves both."""
    first = save(tmp_path, 10, value=2.0)
    shutil.copytree(first, first.with_name("0000010-replaced"))
    prune_checkpoints(tmp_path, 10, keep_last=1, keep_every=None)
    assert sorted(path.name for path in first.parent.iterdir()) == ["0000010", "latest"]


def test_remains_of_a_kill_are_cleared(tmp_path):
    first = save(tmp_path, 10)
    shutil.copytree(first, first.parent / ".partial-0000015")
    shutil.copytree(first, first.parent / ".removed-0000005")
    save(tmp_path, 20)
    assert sorted(path.name for path in first.parent.iterdir()) == ["0000010", "0000020", "latest"]


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


MAPPED = """
import re, sys
from pathlib import Path
from fpdm.training.checkpoint import load_trainer
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = anonymous()
trainer = load_trainer(Path(sys.argv[1]))
assert float(trainer["optimizer"]["exp_avg"][-1]) == 7
print(anonymous() - before)
"""


def test_trainer_state_is_mapped_not_read(tmp_path):
    """256 MiB of it: several processes of a machine share one copy, the system's."""
    state = torch.full((64 * 2**20,), 7.0)
    torch.save({"optimizer": {"exp_avg": state}}, tmp_path / "trainer.pt")
    done = subprocess.run([sys.executable, "-c", MAPPED, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32


def test_damaged_trainer_state_is_said(tmp_path):
    path = save(tmp_path, 10) / "trainer.pt"
    for content in (path.read_bytes()[:500], b"", b"hello\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"trainer\.pt is damaged .*resume from an earlier checkpoint"):
            load_trainer(path.parent)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
