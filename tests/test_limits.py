"""Every number that a user can type has an upper bound, and the error says it."""

import re
import runpy
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import fpdm.config
import fpdm.sampling.settings
from fpdm.processes import Diffusion
from fpdm.processes.times import MOST_STEPS

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
ABSURD = 10**12


def every_settings() -> dict[str, type]:
    """The dataclasses of fpdm.config, the settings of sampling, and the Settings of every command and script."""
    places = {**vars(fpdm.config), **vars(fpdm.sampling.settings)}
    found = {name: kind for name, kind in places.items() if isinstance(kind, type) and is_dataclass(kind)}
    for path in [*sorted((ROOT / "fpdm" / "commands").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]:
        if "class Settings" in path.read_text():
            found[path.name] = runpy.run_path(str(path))["Settings"]
    return found


SETTINGS = every_settings()


def options(kind: str) -> list:
    """(class, option, type) of all options whose type has `kind`, int or float, in it."""
    return [
        pytest.param(settings, field.name, str(field.type), id=f"{name}-{field.name}")
        for name, settings in SETTINGS.items()
        for field in fields(settings)
        if re.search(rf"\b{kind}\b", str(field.type))
    ]


def given(kind: str, value: float) -> list:
    """`value` in each form that an option of this type takes: by itself, as a list of as many as are needed, or by a
    name in a list."""
    if "list[dict" in kind:
        return [[{"NAME": value}]]
    found = re.search(r"(list|tuple)\[([^\]]*)\]", kind)
    if found is None:
        return [value]
    listed = [value] * (found[2].count(",") + 1 if "..." not in found[2] else 1)
    return [value, listed, [1, value]] if re.search(r"\bint \| list", kind) else [listed]


def test_options_are_found():
    """Were none found, the tests below would test nothing."""
    integers = {parameter.id for parameter in options("int")}
    assert {"SJFBConfig-grad", "DataConfig-shape", "VAEConfig-widths", "benchmark.py-threads"} <= integers
    assert {"RunConfig-keep_last", "sample.py-num_samples", "sample.py-counts"} <= integers
    assert {"import_latents.py-shard", "encode_latents.py-resolution"} <= integers
    assert {"OptimConfig-clip_norm", "reproduce.py-minutes"} <= {parameter.id for parameter in options("float")}


@pytest.mark.parametrize(("settings", "name", "kind"), options("int"))
def test_a_whole_number_has_a_bound(settings, name, kind):
    for value in given(kind, ABSURD):
        with pytest.raises(ValueError, match=rf"\b{name}=\[?{ABSURD}.*(at most| to) [\d,]+"):
            settings(**{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("settings", "name", "kind"), options("float"))
def test_a_number_is_finite(settings, name, kind, value):
    for form in given(kind, value):
        with pytest.raises(ValueError, match=rf"\b{name}(\.NAME)?={value}: \S"):
            settings(**{name: form})


@pytest.mark.parametrize(
    ("name", "value"), [("timesteps", ABSURD), ("min_snr_gamma", float("nan")), ("beta_end", float("nan"))]
)
def test_the_diffusion_checks_its_arguments_too(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Diffusion(**{name: value})


def test_an_absurd_dry_run_ends_at_once():
    words = ["--config", "configs/imagenet256/fpdm-xl-2.yaml", "--sjfb.grad", "1000000000", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "scripts/train.py", *words], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "sjfb.grad=1000000000: at least 1, at most 1,000" in done.stderr


def test_the_process_and_its_config_have_one_bound():
    """fpdm.processes does not import the config, so the number stands there too."""
    assert fpdm.config.limits.TIMESTEPS == MOST_STEPS
