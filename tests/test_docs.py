"""Every command in README and docs is one that the scripts and the installed commands accept."""

import re
import runpy
import shlex
from dataclasses import fields
from itertools import takewhile
from pathlib import Path

import pytest

from fpdm import cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCHERS = ("python", "torchrun", "accelerate")
OPERATORS = ("|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1")  # after them comes what is not the command's
COMMANDS = {path.stem: path for path in (ROOT / "fpdm" / "commands").glob("*.py") if path.stem != "__init__"}
INSTALLED = {f"fpdm-{name.replace('_', '-')}": path for name, path in COMMANDS.items()}


def commands(page: Path) -> list[str]:
    """Lines of all ```bash blocks that name a command of ours; continued lines joined, comments dropped."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "scripts/" not in line and "fpdm-" not in line:
                continue
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                found.append(shlex.join(words))
    return found


EVERY = sorted(  # but those of one page, which need its changes: test_your_own_idea.py runs them
    {
        (page.relative_to(ROOT).as_posix(), c)
        for page in PAGES
        if page.name != "your-own-idea.md"
        for c in commands(page)
    }
)


def test_there_are_commands_to_check():
    assert any("scripts/train.py" in command for _, command in EVERY)
    assert {"bash scripts/quickstart.sh", "bash scripts/test.sh"} <= {c for p, c in EVERY if p == "README.md"}


@pytest.mark.parametrize(("page", "command"), EVERY)
def test_command_is_accepted(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[0] not in (*LAUNCHERS, "bash") and not words[0].startswith(("scripts/", "fpdm-")):
        return  # a program that is not ours
    script = next((word for word in words if word.startswith("scripts/") or word in INSTALLED), None)
    if script is None:
        assert not words[0].startswith("fpdm-"), f"{command}: no such command"
        return
    assert script in INSTALLED or (ROOT / script).is_file(), script
    if script.endswith(".sh"):
        assert words[0] == "bash"
        return
    if script in INSTALLED:  # torchrun starts a command with --no-python
        assert words[0] == script or "--no-python" in words[: words.index(script)], command
    else:
        assert words[0] in LAUNCHERS, command
    path = Path(INSTALLED.get(script) or COMMANDS.get(Path(script).stem, script))
    if "make_parser" not in path.read_text():
        return  # a script that reads its options in its own way
    module = runpy.run_path(str(path))
    options = list(takewhile(lambda word: word not in OPERATORS, words[words.index(script) + 1 :]))
    cli.parse(module["Settings"], module["parser"](), options)


@pytest.mark.parametrize(
    "script",
    sorted(
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "scripts").glob("*.py"), *COMMANDS.values()]
        if "make_parser" in path.read_text()
    ),
)
def test_every_option_is_explained(script):
    module = runpy.run_path(str(ROOT / script))
    settings = module["Settings"]
    for field in fields(settings):
        assert re.search(rf"^ +{field.name}: \S", settings.__doc__, re.MULTILINE), f"{script} --{field.name}"
    assert "show this help" in module["parser"]().format_help().lower()


def test_linked_files_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_was_left_to_be_filled_in():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@|TODO|TBD|XXX", page.read_text()), page.name
