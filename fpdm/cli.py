"""Command lines for the scripts: a dataclass is the interface, an error is one line."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from jsonargparse import ArgumentError, ArgumentParser

Settings = TypeVar("Settings")


def make_parser(settings: type, description: str) -> ArgumentParser:
    """A parser whose options are the fields of the dataclass `settings`, and --config for a YAML file.

    Unknown options and unknown keys of the file are errors; abbreviations are not taken.
    """
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(settings)
    return parser


def parse(settings: type[Settings], parser: ArgumentParser, argv: list[str] | None = None) -> Settings:
    """The settings that a command line stands for.

    Dashes in option names read as underscores, and 0,2 as the list [0,2]. For an option that
    does not exist the error names the nearest one.
    """
    lists = {f.name for f in fields(settings) if re.search(r"\b(list|tuple)\[", str(f.type))}
    words = _bracket_lists([_underscored(word) for word in (sys.argv[1:] if argv is None else argv)], lists)
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ValueError(f"{error}{_suggestion(str(error), parser)}; see --help") from error
    return settings(**{name: value for name, value in vars(values).items() if name in settings.__dataclass_fields__})


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _bracket_lists(words: list[str], lists: set[str]) -> list[str]:
    """--classes 0,2 -> --classes [0,2], for the options whose values are lists of numbers."""
    result = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name[2:] in lists and re.fullmatch(r"\d+(,\d+)*", value):
            word = f"{name}=[{value}]"
        elif i and words[i - 1][2:] in lists and words[i - 1].startswith("--") and re.fullmatch(r"\d+(,\d+)*", word):
            word = f"[{word}]"
        result.append(word)
    return result


def _suggestion(message: str, parser: ArgumentParser) -> str:
    """The nearest existing option, where the message is about one that does not exist."""
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", message)
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown[1], options, n=1) if unknown else []
    return f"; did you mean {near[0]}?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Run a script's main: log to the console, and turn a user's mistake into one line and exit status 2.

    FPDM_DEBUG=1 shows the traceback instead.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fpdm").setLevel(logging.INFO)
    try:
        main()
    except (ArgumentError, ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("FPDM_DEBUG") == "1":
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}; check the path and whether it can be written"
        sys.exit(_fail(f"error: {message}"))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _fail(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status
