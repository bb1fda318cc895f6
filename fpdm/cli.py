"""Command lines of the scripts: a dataclass defines the options, and an error is one line."""

import difflib
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from fpdm.config_files import check_names, layers
from fpdm.damage import is_out_of_memory
from fpdm.devices import end_processes, is_lost_process
from fpdm.interrupts import no_interrupt_lost

KINDS = {  # part of a type's name -> what to call it in an error; the first match is used
    r"int \| list\[int": "a whole number, or two as in 256,128",
    r"list\[dict": "a list of names with numbers, as in [{Smiling: 1}, {Smiling: -1}]",
    r"list\[list": "a list of lists of numbers, as in [[0,1],[0.5,2]]",
    r"(list|tuple)\[int": "a list of whole numbers, as in 0,2,5",
    r"(list|tuple)\[str": "a list of names, as in a,b",
    r"(list|tuple)\[float": "a list of numbers, as in [0.5,1]",
    r"\bint\b": "a whole number",
    r"\bfloat\b": "a number",
    r"\bbool\b": "true or false",
}
REMEDIES = {  # of errors that are not about the path
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a path that can be written",
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "free some space and run it again",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
LOST = 3  # exit status of a process whose neighbour was lost
Settings = TypeVar("Settings")


class ConfigFile(ActionConfigFile):
    """--config FILE: the settings of the file, which override those of the files that it extends."""

    def __call__(self, parser, cfg, values, option_string=None):
        known = set(parser.get_defaults().keys()) - {self.dest}
        for layer in layers(values):
            check_names(layer, known)
            try:
                # As JSON, which is YAML: a number stays a number, and a string a string.
                super().__call__(parser, cfg, json.dumps(layer.settings), option_string)
            except (ArgumentError, TypeError, ValueError) as error:
                raise ValueError(f"{layer.path}: {error}") from error


def make_parser(settings: type, description: str) -> ArgumentParser:
    """A parser whose options are the fields of the dataclass `settings`, and --config for a YAML file.

    Unknown options and unknown keys of the file are errors; abbreviations are not accepted. A file may extend
    another (fpdm.config_files). If --config or an option is repeated, the last one wins.
    """
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the options below")
    parser.add_class_arguments(settings)
    return parser


def parse(settings: type[Settings], parser: ArgumentParser, argv: list[str] | None = None) -> Settings:
    """The settings from a command line.

    Dashes in option names are read as underscores, 0,2 as the list [0,2], and a switch without a
    value as true. The error for an unknown option suggests the nearest one.
    """
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    options = _option_types(settings)
    words = _bracket_lists(words, options)
    words = _explicit_switches(words, options)
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        message = _wrong_value(str(error), options) or f"{error}{_suggestion(str(error), parser)}"
        raise ValueError(f"{message}; see --help") from error
    return settings(**{name: value for name, value in vars(values).items() if name in settings.__dataclass_fields__})


def _underscored(word: str) -> str:
    if not re.match(r"--[\w.-]+(=|$)", word):  # a value, even one that begins with dashes
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _option_types(settings: type, prefix: str = "") -> dict[str, type]:
    """The type of every option, including those of sections."""
    found = {}
    for field in fields(settings):
        if is_dataclass(field.type):
            found |= _option_types(field.type, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field.type
    return found


def _explicit_switches(words: list[str], options: dict[str, type]) -> list[str]:
    """--dry_run -> --dry_run true."""
    result = []
    for word, following in pairwise([*words, "--"]):
        result.append(word)
        if word.startswith("--") and options.get(word[2:]) is bool and following.startswith("--"):
            result.append("true")
    return result


def _bracket_lists(words: list[str], options: dict[str, type]) -> list[str]:
    """--classes 0,2 -> --classes [0,2], for the options whose values are lists."""
    is_list = {name: re.search(r"\b(list|tuple)\[", str(kind)) for name, kind in options.items()}
    lists = {name: options[name] for name, found in is_list.items() if found}
    result, before = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name[2:] in lists:
            word = f"{name}={_bracketed(value, lists[name[2:]])}"
        elif before.startswith("--") and before[2:] in lists:
            word = _bracketed(word, lists[before[2:]])
        result.append(word)
        before = word
    return result


def _bracketed(value: str, kind: type) -> str:
    if kind in (list[str], tuple[str, ...]) and not value.startswith("["):
        return json.dumps(value.split(","))
    if re.search(r"\bint \| list", str(kind)) and "," not in value:  # a number may stay one
        return value
    return f"[{value}]" if re.fullmatch(r"-?\d+(,-?\d+)*", value) else value


def _wrong_value(message: str, options: dict[str, type]) -> str | None:
    """One line for a value of the wrong type, instead of the parser's long error."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if key is None or value is None or key[1] not in options:
        return None
    kind = str(options[key[1]])
    if so_many := re.search(r"tuple\[(int(, int)+)\]", kind):
        given = value[1].strip("[] ").replace(" ", "")
        return f"{key[1]}={given}: expected {so_many[1].count('int')} whole numbers, separated by commas"
    for part, said in KINDS.items():
        if re.search(part, kind):
            return f"{key[1]}={value[1].strip()}: expected {said}"
    return None


def _suggestion(message: str, parser: ArgumentParser) -> str:
    """The nearest existing option, if the message is about an unknown one."""
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", message)
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown[1], options, n=1) if unknown else []
    return f"; did you mean {near[0]}?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Run a script's main: log to the console, and turn a user error into one line and exit status 2, or the status
    that the error asks for (`exit_status`).

    FPDM_DEBUG=1 shows the traceback instead.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fpdm").setLevel(logging.INFO)
    try:
        with no_interrupt_lost(unless=is_lost_process):  # Ctrl-C may have ended the other one, too
            main()
            end_processes()
    except (ArgumentError, ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("FPDM_DEBUG") == "1":
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            remedy = REMEDIES.get(error.errno) or (error.filename and "check the path")
            message = ": ".join(map(str, filter(None, (error.filename, error.strerror))))
            message += f"; {remedy}" if remedy else ""
        sys.exit(_fail(f"error: {message}", getattr(error, "exit_status", 2)))
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("FPDM_DEBUG") == "1":
            raise
        if is_out_of_memory(error):
            what = f": {' '.join(str(error).split())[:200]}" if str(error) else ""
            sys.exit(_fail(f"error: out of memory{what}; free some memory, or choose smaller batches or fewer workers"))
        if not is_lost_process(error):
            raise
        reason = " ".join(str(error).split())[:200]
        said = f"error: another process of this command has ended or does not answer ({reason}); run it again to resume"
        _fail(f"\n{said}")  # on a line of its own, though the other one may have left its progress bar open
        os._exit(LOST)  # leaving the group in order would wait for the process that is lost
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _fail(message: str, status: int = 2) -> int:
    sys.stderr.write(f"{message}\n")
    return status
