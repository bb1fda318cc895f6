"""What the page gives away: its command makes the files of its zip, byte for byte."""

import io
import runpy
import shlex
import sys
import zipfile
from pathlib import Path

import pytest

from fpdm.demo.download import COMMAND, archive
from fpdm.demo.drawing import draw
from fpdm.demo.request import ask

ROOT = Path(__file__).parents[2]
ASKED = {
    "the default": {},
    "guided, one class, another seed": {"label": 7, "seed": 5, "cfg_scale": 2.5, "sampler": "ab2"},
    "decreasing, damped reuse, with noise": {"budget": 30, "iterations": 2, "allocation": "decreasing",
                                             "reuse_weight": 0.8, "sampler": "ddpm"},
    "adaptive, no reuse": {"budget": 30, "iterations": 4, "allocation": "adaptive", "reuse": False},
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_the_command_makes_the_same_files(models, bounds, shared, way, what, tmp_path, monkeypatch):
    changed = ASKED[what]
    shared = shared._replace(**{name: value for name, value in changed.items() if name in shared._fields})
    way = way._replace(**{name: value for name, value in changed.items() if name in way._fields})
    with zipfile.ZipFile(io.BytesIO(archive(draw(ask(models, shared, way, bounds), lambda done, of: None)))) as given:
        files = {name: given.read(name) for name in given.namelist()}
    python, *words = shlex.split(files.pop(COMMAND).decode())
    assert python == "python" and len(files) == 4 == len(set(files.values()))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out")])
    runpy.run_path(words[0], run_name="__main__")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("0*.png")} == files
