"""Command lines for the scripts: a dataclass is the interface, an error is one line."""

import logging
import os
import sys
from collections.abc import Callable
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
    """The settings that a command line stands for; dashes in option names read as underscores."""
    words = sys.argv[1:] if argv is None else argv
    values = parser.instantiate(parser.parse_args([_underscored(word) for word in words]))
    return settings(**{name: value for name, value in vars(values).items() if name in settings.__dataclass_fields__})


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


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
        sys.exit(_fail(f"error: {message}"))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _fail(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status
