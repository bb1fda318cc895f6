"""scripts/train.py --dry-run: what a run would be, before there is data."""

import logging
import re
from pathlib import Path

import pytest

from fpdm.commands import train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dry_run(monkeypatch, caplog):
    """What the script says of a command line."""

    def run(*words) -> str:
        monkeypatch.setattr("sys.argv", ["train.py", "--dry-run", *map(str, words)])
        caplog.clear()
        with caplog.at_level(logging.INFO, "fpdm"):
            train.main()
        return caplog.text

    return run


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            "imagenet256/fpdm-xl-2.yaml",
            [
                "86,500,256",
                "no_grad: 12",
                "14.5 block passes forward per image, 8.5 of them",
                "26 block passes",
                "GiB at most",
            ],
        ),
        ("imagenet256/dit-xl-2.yaml", ["674,834,720", "28 block passes forward per image;", "GiB every step"]),
        ("cifar10/fpdm-s-2.yaml", ["FPDM-S/2", "shape:", "class_dropout: 0.1"]),
    ],
)
def test_paper_configs_without_data(dry_run, config, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no store
    said = dry_run("--config", ROOT / "configs" / config)
    for part in says:
        assert part in said, part
    assert not list(tmp_path.iterdir())


def test_files_are_told(dry_run):
    """86,500,256 weights in float32, and two numbers of AdamW's for each."""
    config = ("--config", ROOT / "configs" / "imagenet256" / "fpdm-xl-2.yaml")
    each = r"checkpoint +1\.29 GiB each \(weights 0\.32, averages 0\.32, optimizer 0\.64\)\n"
    assert re.search(each, said := dry_run(*config)) and "snapshots every" not in said
    more = ["--optim.ema_profiles", "[0.05,0.1]", "--optim.ema_snapshot_every", 30_000, "--optim.ema_extra", "[0.999]"]
    said = dry_run(*config, *more)  # 400,000 steps: 13 times, and at the end
    assert re.search(r"checkpoint +2\.26 GiB each \(weights 0\.32, averages 1\.29, optimizer 0\.64\)\n", said)
    assert "snapshots every 30,000 steps, 0.64 GiB each time, 9.02 GiB in the end" in said


def test_store_decides_where_there_is_one(dry_run, tiny_store):
    said = dry_run("--model.name", "DiT-XS/2", "--data.latents", tiny_store, "--optim.batch_size", 8)
    assert "8 samples at a time" in said and "DiT-XS/2" in said
    with pytest.raises(ValueError, match=r"data\.classes=5: the latents in .* have 3"):
        dry_run("--data.latents", tiny_store, "--data.classes", 5)


def test_neither_store_nor_sizes(dry_run):
    with pytest.raises(ValueError, match=r"data\.shape and data\.classes must say"):
        dry_run("--data.latents", "/nowhere")


def test_larger_steps_need_more(dry_run):
    """M = N = 24 against 3: the step's FLOPs and the memory follow."""
    numbers = []
    for updates in (3, 24):
        said = dry_run("--config", ROOT / "configs/imagenet256/fpdm-xl-2.yaml", "--sjfb.no_grad", updates,
                       "--sjfb.grad", updates, "--optim.micro_batch_size", 64)  # fmt: skip
        numbers.append(float(said.split("GiB at most")[0].split()[-1]))
    assert numbers[1] > 2 * numbers[0]


SMALL = ("--model.name", "DiT-XS/2", "--data.shape", "4,32,32", "--data.classes", 3, "--optim.batch_size", 512)


def test_what_fits_is_said(dry_run):
    assert "the largest step fits a GPU of 80 GiB" in dry_run(*SMALL, "--gpu-memory", 80)
    said = dry_run(*SMALL, "--gpu-memory", 1)
    assert "does not fit a GPU of 1 GiB" in said and said.count("no micro-batch fits") == 2


def test_the_micro_batch_that_would_fit_is_the_largest(dry_run):
    """What is proposed fits, and twice as much does not."""
    said = dry_run(*SMALL, "--gpu-memory", 4)
    proposals = re.findall(r"--run.gradient_checkpointing (\w+) --optim.micro_batch_size (\d+) fits", said)
    assert "does not fit a GPU of 4 GiB" in said and [recompute for recompute, _ in proposals] == ["false", "true"]
    (recompute, size), (_, with_recomputation) = proposals
    assert 1 < int(size) < int(with_recomputation)
    for factor, verdict in ((1, "step fits"), (2, "step does not fit")):
        words = ("--run.gradient_checkpointing", recompute, "--optim.micro_batch_size", factor * int(size))
        assert verdict in dry_run(*SMALL, "--gpu-memory", 4, *words)


def test_the_share_of_one_process_is_no_riddle(dry_run):
    said = dry_run(*SMALL, "--optim.micro_batch_size", 32)
    assert "There is 1 process. It takes all 512 samples of a step, 32 at a time" in said
    assert "torchrun --nproc_per_node=8" in said
    assert "fits a GPU" not in said  # nothing said of which, and none here


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu-memory", 16], "gpu_memory=16 without dry_run"),
        (["--dry-run", "--gpu-memory", 0], r"gpu_memory=0\.0: must be positive"),
    ],
)
def test_gpu_memory_is_for_a_dry_run(words, says, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
    with pytest.raises(ValueError, match=says):
        train.main()
