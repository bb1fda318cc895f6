"""The report of a campaign: report.md and report.json, made from its journals."""

import json
import platform
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch

from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.soak.bad_input import MEMORY
from fpdm.soak.campaign import LOST, Campaign
from fpdm.soak.experiments import EXPERIMENTS

MEBI = 2**20


def report(campaign: Campaign, command: str) -> str:
    """Write both files; returns the text of report.md."""
    lines = {name: found for name in EXPERIMENTS if (found := campaign.last_lines(name))}
    parts = [_facts(campaign, lines, command), _totals(lines), _outcomes(lines)]
    if "bad-input" in lines:
        parts.append(_memory(lines["bad-input"]))
    text = "\n\n".join(parts)
    write_atomically(campaign.out / "report.md", text + "\n")
    numbers = {name: _numbers(name, found) for name, found in lines.items()}
    write_atomically(campaign.out / "report.json", json.dumps(numbers, indent=1))
    return text


def outcome_of(line: dict) -> str:
    """The outcome, which also tells of losses that did not come again when the round was repeated."""
    losses = line.get("losses", 0)
    return f"lost {losses} time(s), then {line['outcome']}" if losses and line["outcome"] != LOST else line["outcome"]


def _facts(campaign: Campaign, lines: dict[str, list[dict]], command: str) -> str:
    commits = sorted({line.get("commit", "unknown") for found in lines.values() for line in found})
    seconds = sum(line["seconds"] for found in lines.values() for line in found)
    text = (
        f"{_machine()}; Python {platform.python_version()}, torch {torch.__version__}. "
        f"Ended {time.strftime('%d %B %Y')}, after {seconds:,.0f} s of rounds. "
        f"Commit {', '.join(commits) or campaign.commit}. Command: `{command}`"
    )
    if len(commits) > 1:
        text += "\n\n**Several states of the code: the rounds of this report were not all played with the same code.**"
    return text


def _machine() -> str:
    """The processor and its number of threads."""
    models = [line.partition(":")[2].strip() for line in _read(Path("/proc/cpuinfo")).splitlines()
              if line.startswith("model name")]  # fmt: skip
    return f"{models[0] if models else platform.machine()}, {len(models) or 'unknown'} threads, {platform.system()}"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _totals(lines: dict[str, list[dict]]) -> str:
    rows, sums = [], Counter()
    for name, found in lines.items():
        of_one = Counter(
            rounds=len(found), killed=sum(line["did"].get("killed", 0) for line in found),
            lost=sum(line["outcome"] == LOST for line in found), again=sum(line.get("losses", 0) for line in found),
        )  # fmt: skip
        sums += of_one
        seconds = sum(line["seconds"] for line in found)
        rows.append([name, EXPERIMENTS[name].about, *_row(of_one), f"{seconds:,.0f}"])
    rows.append(["all", "", *_row(sums), ""])
    heads = ["experiment", "what", "rounds", "SIGKILLs", "lost", "lost, then passed", "seconds"]
    return markdown_table(heads, rows)


def _row(counted: Counter) -> list[str]:
    return [f"{counted[name]:,d}" for name in ("rounds", "killed", "lost", "again")]


def _outcomes(lines: dict[str, list[dict]]) -> str:
    rows = []
    for name, found in lines.items():
        counts = Counter((line["kind"], outcome_of(line)) for line in found)
        rows += [[name, kind, f"{number:,d}", outcome] for (kind, outcome), number in sorted(counts.items())]
    return markdown_table(["experiment", "what", "rounds", "outcome"], rows)


def _memory(lines: list[dict]) -> str:
    """The largest memory of each kind of bad input beside the bound."""
    largest = defaultdict(int)
    for line in lines:
        largest[line["kind"]] = max(largest[line["kind"]], line["did"].get("mapped") or 0)
    rows = [[kind, f"{most / MEBI:,.0f}", f"{MEMORY / MEBI:,.0f}"] for kind, most in sorted(largest.items()) if kind]
    return markdown_table(["bad input", "MiB mapped at most, beyond the libraries", "bound"], rows)


def _numbers(name: str, lines: list[dict]) -> dict:
    counts = Counter((line["kind"], outcome_of(line)) for line in lines)
    return {"about": EXPERIMENTS[name].about, "rounds": len(lines), "seconds": sum(line["seconds"] for line in lines),
            "killed": sum(line["did"].get("killed", 0) for line in lines),
            "outcomes": [[*key, number] for key, number in sorted(counts.items())]}  # fmt: skip
