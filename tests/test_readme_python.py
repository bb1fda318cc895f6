"""The Python in README and docs runs, on a run of the tests' own."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

ROOT = Path(__file__).parents[1]
BLOCKS = [
    (page.name, block)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    # The blocks of the first are changes of the package: test_your_own_idea.py makes them. That of the second is a
    # server, which tests/demo/test_command.py starts.
    if page.name not in ("your-own-idea.md", "demo.md")
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


class Pictures(list):
    """Stands for torchvision's CIFAR10, which would be downloaded."""

    classes = ("airplane", "automobile")

    def __init__(self, folder: str, download: bool):
        super().__init__((Image.new("RGB", (32, 32)), label) for label in (0, 1, 1))


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_python_runs(page, block, tiny_run, image_folder, tmp_path, monkeypatch, capsys):
    """The same lines on a small run, on the CPU, with labels that it has."""
    monkeypatch.chdir(tmp_path)
    stands_for = {
        '"results/000-FPDM-XL-2"': f'"{tiny_run}"',
        '"assets/fpdm-digits"': f'"{ROOT / "assets" / "fpdm-digits"}"',
        '"samples/fpdm"': '"samples.npz"',
        '"/path/to/imagenet/train"': f'"{image_folder}"',
        "FPDM-XL/2": "FPDM-XS/2",
        '"cuda"': '"cpu"',
        "classes=[207, 360]": "classes=[1, 2]",
        '"classes": [207, 360]': '"classes": [1, 2]',
        "class_labels=[207, 360]": "class_labels=[1, 2]",
    }
    for theirs, ours in stands_for.items():
        block = block.replace(theirs, ours)
    monkeypatch.setattr(datasets, "CIFAR10", Pictures)
    np.savez("samples.npz", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    names = {}
    exec(block, names)
    printed = capsys.readouterr().out
    if "again" in names:
        assert "torch.Size([2, 8, 32, 32]) torch.Size([2, 256, 128])" in printed
    if "save_grid" in block:
        assert (tmp_path / "grid.png").stat().st_size > 0 and names["images"].shape[:2] == (16, 3)
    if "pipe" in names:
        assert len(names["images"]) == 2 and names["images"][0].size == (16, 16)
    if "CIFAR10" in names:
        with zipfile.ZipFile("cifar10-train.zip") as made:
            assert made.namelist() == ["airplane/00000.png", "automobile/00001.png", "automobile/00002.png"]
    if "folder" in names:
        assert len(list(names["folder"].glob("0*.png"))) == 100 and f"{names['scores']['FD-cnn@100']}" in printed
    elif "scores" in names:
        assert json.loads((tmp_path / "score.json").read_text()) == names["scores"]


def test_there_are_blocks_to_run():
    assert {"README.md", "evaluation.md", "sampling.md"} <= {page for page, _ in BLOCKS}
