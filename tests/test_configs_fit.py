"""Every file in configs/ names the GPUs it is for, and a process's largest step fits one of them.

`# Fits: 8 GPUs of 16 GiB (V100)` stands in the file or in one that it extends.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fpdm import cli
from fpdm.config import ExperimentConfig
from fpdm.config_files import layers
from fpdm.training.fits import needed_gib
from fpdm.training.setup import build_network, split_batch

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
LINE = re.compile(r"^# Fits: (?P<count>[1-9]\d*) GPUs? of (?P<gib>\d+) GiB \((?P<kind>.+)\)$", re.MULTILINE)
OPEN_DATA = ([4, 32, 32], 1000)  # what a config that leaves its data open is counted for
COUNTED = {}


class GPUs(NamedTuple):
    count: int
    gib: int
    kind: str


def named_gpus(path: Path) -> GPUs:
    for layer in reversed(layers(path)):
        if found := LINE.search(Path(layer.path).read_text()):
            return GPUs(int(found["count"]), int(found["gib"]), found["kind"])
    raise AssertionError(f"{path}: no line like '# Fits: 8 GPUs of 16 GiB (V100)', nor in what it extends")


def read(path: Path) -> ExperimentConfig:
    return cli.parse(ExperimentConfig, cli.make_parser(ExperimentConfig, "train"), ["--config", str(path)])


def needed(config: ExperimentConfig, processes: int) -> float:
    """GiB of a process's largest step; configs whose steps are alike are counted once."""
    _, micro_batch = split_batch(config.optim, 0, processes)
    shape, classes = config.data.shape or OPEN_DATA[0], config.data.classes or OPEN_DATA[1]
    key = repr((config.model, config.sjfb, config.optim.batch_size, config.run.mixed_precision,
                config.run.gradient_checkpointing, shape, micro_batch, processes))  # fmt: skip
    if key not in COUNTED:
        with torch.device("meta"):
            network = build_network(config, shape, classes)
        COUNTED[key] = needed_gib(config, network, processes, micro_batch, config.run.gradient_checkpointing)
    return COUNTED[key]


def check_fits(path: Path) -> None:
    gpus, config = named_gpus(path), read(path)
    need = needed(config, gpus.count)
    assert need <= gpus.gib, f"{path}: a step needs {need:.1f} GiB of the {gpus.gib} that it names"
    old = re.search(r"\b(V100|T4)\b", gpus.kind)
    assert not (old and config.run.mixed_precision == "bf16"), f"{path}: a {old[0]} has no bfloat16"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_config_fits_the_gpus_it_names(path):
    check_fits(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {micro_batch_size: 64}", r"needs \d\d\.\d GiB of the 16"),
        ("run: {mixed_precision: bf16}", "a V100 has no bfloat16"),
        ("# Fits: 8 GPUs of 8 GiB (RTX 3070)", "GiB of the 8 that it names"),
    ],
)
def test_a_config_that_does_not_fit_is_found(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {CONFIGS / 'imagenet256' / 'fpdm-xl-2.yaml'}\n{text}\n")
    with pytest.raises(AssertionError, match=says):
        check_fits(path)


def test_a_config_without_the_line_is_found(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# Fits 8 GPUs\noptim: {steps: 3}\n")
    with pytest.raises(AssertionError, match="no line like"):
        check_fits(path)
