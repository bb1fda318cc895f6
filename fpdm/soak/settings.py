"""Command lines and settings that no one would give, drawn by hypothesis, of every command and script."""

import importlib
import pkgutil
import runpy
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fpdm import commands
from fpdm.chain import ROOT

# What ends a command soon if all that was drawn is valid: something that is not there, or no time.
ENDS: dict[str, list] = {
    "benchmark": ["--minutes", 0], "demo": ["--ckpt", "absent"], "encode_latents": ["--images", "absent"],
    "evaluate": ["--reference", "absent"], "on_gpu": ["--minutes", 0], "quickstart": ["--budget", 1],
    "reproduce": ["--minutes", 0], "soak": ["--experiments", "absent"], "solver_errors": ["--calls", 5],
    "study_precision": ["--ckpt", "absent"], "study_sampling": ["--ckpt", "absent"], "train": ["--dry-run"],
    "train_classifier": ["--images", "absent"], "train_vae": ["--images", "absent"],
}  # fmt: skip
NOT_DRAWN = {"config", "push_to", "out", "run.results", "rehearse", "share"}  # outside, the network, minutes
WITHOUT_OUT = {"demo", "solver_errors", "train"}


def names_of() -> list[str]:
    """The names of all commands, and of the scripts that have settings as the commands have them."""
    scripts = [path.stem for path in sorted((ROOT / "scripts").glob("*.py")) if "cli.run(main)" in path.read_text()]
    return sorted({*(module.name for module in pkgutil.iter_modules(commands.__path__)), *scripts})


@cache
def options_of(name: str) -> list[str]:
    """The options of a command."""
    if (ROOT / "fpdm" / "commands" / f"{name}.py").exists():
        parser = importlib.import_module(f"fpdm.commands.{name}").parser()
    else:
        parser = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="settings")["parser"]()
    return sorted(set(parser.get_defaults().keys()) - NOT_DRAWN)


def drawn_words(name: str, draw: Random, out: Path) -> list:
    """A command with some of its options, and texts of any kind as their values. What it would write lies in `out`."""
    words: list = [name]
    for option, value in _example(_options(options_of(name)), draw):
        words += [f"--{option}", value] if value is not None else [f"--{option}"]
    return [*words, *end_of(name, out)]


def end_of(name: str, out: Path) -> list:
    """The options that come last: where it would write, and what ends it soon."""
    where = [] if name in WITHOUT_OUT else ["--out", out / "file" if name in ("evaluate", "study_precision") else out]
    return [*where, *(["--run.results", out] if name == "train" else []), *ENDS.get(name, [])]


def drawn_yaml(name: str, path: Path, draw: Random) -> str:
    """A YAML file with some settings of a command, with values of any kind, or with another content."""
    content: Any = {}
    for option, value in _example(_options(options_of(name), True), draw):
        section, _, leaf = option.rpartition(".")
        (content.setdefault(section, {}) if section else content)[leaf] = value
    if draw.random() < 0.2:
        content = _example(_values(), draw)
    text = yaml.safe_dump(content)
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice("{[:&*!|>%@`'\"\t") + text[at:]
    path.write_text(text)
    return text[:300]


def _options(names: list[str], typed: bool = False):
    """Up to four options, with texts as a command line has them, or with values of any type."""
    from hypothesis import strategies as some

    values = _values() if typed else some.one_of(some.none(), _texts())
    return some.lists(some.tuples(some.sampled_from(names), values), min_size=1, max_size=4)


def _texts():
    from hypothesis import strategies as some

    numbers = some.one_of(some.integers(), some.floats(), some.sampled_from([0, -1, 2**31, 10**30, 1e308]))
    plain = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
    lists = some.lists(numbers, max_size=4).map(lambda values: str(values).replace(" ", ""))
    return some.one_of(numbers.map(str), plain.filter(lambda text: not text.startswith("-")), lists)


def _values():
    from hypothesis import strategies as some

    leaves = some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=20))

    def inner(parts):
        return some.one_of(some.lists(parts, max_size=3), some.dictionaries(some.text(max_size=5), parts, max_size=3))

    return some.recursive(leaves, inner, max_leaves=4)


def _example(strategy, draw: Random) -> Any:
    """A value of a hypothesis strategy, a function of the random numbers."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    found = []

    @seed(draw.randrange(2**32))
    @settings(max_examples=8, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    return found[-1]
