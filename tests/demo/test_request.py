"""What the page may ask for: refused in one line, or the settings that sample.py would get."""

import math
from dataclasses import asdict

import pytest

from fpdm.demo.models import open_models
from fpdm.demo.request import ask, unavailable
from fpdm.sampling.settings import SamplingConfig

WRONG = {
    "images=10000: at least 1, at most 64": {"images": 10_000},
    "images='many': expected a number": {"images": "many"},
    "images=None: expected a number": {"images": None},
    "images=True: expected a number": {"images": True},
    "images=2.5: expected a whole number": {"images": 2.5},
    "images=nan: expected a number": {"images": math.nan},
    "budget=481: at least 1, at most 480": {"budget": 481},
    "budget=2 does not hold one timestep of 3 block passes: raise it, or lower iterations": {"budget": 2},
    "iterations=33: at least 1, at most 32": {"iterations": 33},
    "seed=-1: at least 0": {"seed": -1},
    "class=10: at least 0, at most 9": {"label": 10},
    "class='seven': expected a number": {"label": "seven"},
    "model='/etc/passwd': choose one of fpdm, dit": {"model": "/etc/passwd"},
    "sampler='x': choose one of ddpm, ddim": {"sampler": "x"},
    "allocation=decreasing with iterations=1: nothing to move; give at least 2": {"allocation": "decreasing"},
    "reuse='yes': expected true or false": {"reuse": "yes"},
    "reuse_weight=0: above 0, at most 1": {"reuse_weight": 0},
    "cfg_scale=inf: expected a number": {"cfg_scale": math.inf},
    "model=\"{'path': '/etc/passwd'}\": choose one of": {"model": {"path": "/etc/passwd"}},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_value_gets_one_line(models, bounds, shared, way, said):
    wrong = WRONG[said]
    shared = shared._replace(**{name: value for name, value in wrong.items() if name in shared._fields})
    way = way._replace(**{name: value for name, value in wrong.items() if name in way._fields})
    with pytest.raises(ValueError) as error:
        ask(models, shared, way, bounds)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_long_wrong_value_is_not_repeated(models, bounds, shared, way):
    for changed in ({"model": "x" * 10**6}, {"iterations": "x" * 10**6}, {"sampler": ["x" * 10**6]}):
        with pytest.raises(ValueError) as error:
            ask(models, shared, way._replace(**changed), bounds)
        assert len(str(error.value)) < 400


def test_the_settings_are_those_of_sample(models, bounds, shared, way):
    asked = ask(models, shared._replace(label=7, seed=3.0, budget=60), way._replace(sampler="ab2", cfg_scale=2), bounds)
    assert asked.config == SamplingConfig(budget=60, iterations=1, sampler="ab2", cfg_scale=2, classes=[7], seed=3)
    assert asked.config.reuse is None and asked.images == 4
    off = ask(models, shared, way._replace(reuse=False), bounds).config
    assert off == SamplingConfig(budget=12, iterations=1, reuse=False)


def test_what_is_greyed_out_has_no_say(models, bounds, shared, way):
    """A DiT: the controls of iterations keep their last values, and mean nothing."""
    busy = way._replace(model="dit", iterations=9, allocation="decreasing", reuse_weight=0.5, cfg_scale=4.0)
    changed = {name: value for name, value in asdict(ask(models, shared, busy, bounds).config).items() if value}
    assert changed == {"budget": 12, "allocation": "constant", "ratio": 3.0, "tolerance": 0.05, "reuse_weight": 1.0,
                       "sampler": "ddim", "shift": 1.0, "cfg_scale": 1.0, "internal_guidance": 1.0}  # fmt: skip
    weight = ask(models, shared, way._replace(reuse=False, reuse_weight=0.5), bounds).config.reuse_weight
    assert weight == 1


def test_what_is_not_possible_says_why(models):
    fpdm, dit = (models[name].source for name in ("fpdm", "dit"))
    assert unavailable(fpdm, 4, True) == unavailable(fpdm, 1, True) == {}
    assert unavailable(fpdm, 4, False) == {"reuse_weight": "no earlier solution is kept; leave one of the two out"}
    assert unavailable(fpdm._replace(reusable=False, reuse=False), 4, False).keys() == {"reuse", "reuse_weight"}
    assert unavailable(dit, 4, True).keys() == {"iterations", "allocation", "reuse", "reuse_weight", "cfg_scale"}
    assert "an explicit model (DiT) has no iterations" in unavailable(dit, 4, True)["iterations"]
    assert "without label dropout" in unavailable(dit, 4, True)["cfg_scale"]


def test_models_have_names_of_their_own(tmp_path, monkeypatch):
    folder = open_models([])["fpdm-digits"].source.origin
    assert folder is None  # samples of the page are never taken for those of a folder
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_models(["results/nowhere"])
    monkeypatch.setattr("fpdm.demo.models.open_one", lambda name, ckpt: ckpt)
    assert open_models(["a/x", "b/x", "c/y", "c/y"]) == {"a/x": "a/x", "b/x": "b/x", "y": "c/y"}
    monkeypatch.setattr("fpdm.demo.models.ASSETS", tmp_path)
    with pytest.raises(ValueError, match="ckpt is not set, and there are no released models"):
        open_models([])
