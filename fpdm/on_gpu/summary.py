"""The results to take home: a summary, and a copy of every file that is small enough."""

import re
import shutil
from pathlib import Path

from fpdm.evaluation.tables import markdown_table
from fpdm.files import read_json, write_atomically
from fpdm.on_gpu.goals import Rows, goals, remarks
from fpdm.on_gpu.gpu_tests import read_log
from fpdm.records import fits

LIMIT = 10_000_000  # bytes of all files to take home
OF_SUMMARY = 500_000  # part of them reserved for the summary
KINDS = (".md", ".json", ".jsonl", ".yaml", ".png", ".log", ".gz", ".safetensors")
WORK = ("home", "latents", "features", "checkpoints")  # folders that are not copied
VERDICTS = {True: "reached", False: "**not reached**", None: "not measured yet"}


def write_summary(out: Path, machine: dict[str, str], records: list[dict]) -> None:
    """Write out/summary.md, and create out/home again with a copy of it and of other files, under LIMIT.

    machine: facts by name. records: of the parts, with name, what, state, said, seconds.
    """
    small = rows_of(out / "batch-8")
    rows = rows_of(out / "batch-64")
    chosen, left_out = choose(out)
    size = sum(path.stat().st_size for path in chosen)
    sections = [
        "# On a GPU",
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
        f"## Tests\n\n{tests_section(out)}",
        f"## Parts\n\n{parts_section(records)}",
        f"## Goals\n\n{goals_section(rows)}",
        *remarks(rows, small),
        *(report_section(path) for path in sorted(out.glob("*/report.md"))),
        f"## Files to take home\n\n{len(chosen) + 1} files in {out / 'home'}: this summary, and {size / 1e6:.1f} MB of "
        f"others. {left_behind(out, left_out)}",
    ]
    write_atomically(out / "summary.md", "\n\n".join(sections) + "\n")
    home = out / "home"
    shutil.rmtree(home, ignore_errors=True)
    for path in (*chosen, out / "summary.md"):
        (home / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, home / path.relative_to(out))


def rows_of(folder: Path) -> Rows:
    """Measurements of benchmark.py in a folder, by question, without failed cases."""
    found = {}
    for path in folder.glob("*.json"):
        rows = read_json(path)
        if fits(rows, list[dict]):  # the others are settings and progress
            found[path.stem] = [row for row in rows if "failed" not in row]
    return found


def tests_section(out: Path) -> str:
    tests = read_log(out / "tests.log")
    failed = [f"- `{name}`: {reason}" for name, reason in tests.failed.items()]
    return "\n".join([f"**{tests}**:\n" if failed else f"{tests}.", *failed])


def parts_section(records: list[dict]) -> str:
    body = [
        [r["name"], r["what"], r["state"], r["said"].replace("|", "/"), f"{r['seconds'] / 60:.1f}"] for r in records
    ]
    return markdown_table(["part", "what", "state", "", "minutes"], body, 4)


def goals_section(rows: Rows) -> str:
    body = [[goal.what, goal.wanted, goal.measured, VERDICTS[goal.reached]] for goal in goals(rows)]
    return markdown_table(["goal", "wanted", "measured, in the best mode", ""], body, 4)


def report_section(path: Path) -> str:
    """A folder's report, with the folder's name as heading and in the links to its pictures."""
    folder, text = path.parent.name, re.sub(r"^# .*\n", "", path.read_text()).strip()
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"\]\((?=[\w-]+\.png)", f"]({folder}/", text))
    shares = f"\n\n![shares of the time]({folder}/profiles.png)" if (path.parent / "profiles.png").is_file() else ""
    return f"# {folder}\n\n{text}{shares}"


def choose(out: Path) -> tuple[list[Path], list[Path]]:
    """Files to take home, smallest first, up to LIMIT; and the files that do not fit."""
    chosen, left_out, room = [], [], LIMIT - OF_SUMMARY
    found = [path for path in out.rglob("*") if path.suffix in KINDS and path.is_file() and path.name != "summary.md"
             and not set(path.relative_to(out).parts[:-1]) & set(WORK)]  # fmt: skip
    for path in sorted(found, key=lambda path: path.stat().st_size):
        room -= path.stat().st_size
        (chosen if room >= 0 else left_out).append(path)
    return chosen, left_out


def left_behind(out: Path, paths: list[Path]) -> str:
    if not paths:
        return "No file was too large."
    named = ", ".join(f"{path.relative_to(out)} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths)
    return f"Left out, because the limit is {LIMIT / 1e6:.0f} MB in total: {named}."
