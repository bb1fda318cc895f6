"""Command lines and settings that no one would give, drawn by hypothesis, of every command."""

import importlib
import pkgutil
import warnings
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fpdm import commands


def commands_of() -> list[str]:
    """The names of the commands."""
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def drawn_words(draw: Random, out: Path) -> list:
    """A command with some of its options, and values of any kind. What it would write lies in `out`."""
    name = draw.choice(commands_of())
    parser = importlib.import_module(f"fpdm.commands.{name}").parser()
    options = [name for name in _options_of(parser) if name not in ("push_to", "out", "run.results")]
    words: list = [name]
    for option, value in _example(_options(options), draw):
        words += [f"--{option}", value] if value is not None else [f"--{option}"]
    where = "--run.results" if name == "train" else None if name == "evaluate" else "--out"
    return words if where is None else [*words, where, out]


def drawn_yaml(path: Path, draw: Random) -> str:
    """A YAML file with some settings of train.py, with values of any kind, or with another content."""
    parser = importlib.import_module("fpdm.commands.train").parser()
    content: Any = {}
    for option, value in _example(_options(_options_of(parser), True), draw):
        section, _, name = option.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    if draw.random() < 0.2:
        content = _example(_values(), draw)
    text = yaml.safe_dump(content)
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice("{[:&*!|>%@`'\"\t") + text[at:]
    path.write_text(text)
    return text[:300]


def _options_of(parser) -> list[str]:
    return sorted({key for key, _ in parser.get_defaults().items()} - {"config"})


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
