"""A campaign: rounds of experiments, one line of a journal each, until the first loss, the time limit, or the end."""

import json
import logging
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

from fpdm.evaluation.tables import markdown_table
from fpdm.files import write_atomically
from fpdm.soak.experiments import EXPERIMENTS
from fpdm.soak.outcome import Lost, Round
from fpdm.soak.works import Material

logger = logging.getLogger("fpdm")


class Campaign:
    """The files of a campaign in `out`: journals/<experiment>.jsonl, the material, and the folder of the round."""

    def __init__(self, out: Path, seed: int, deadline: float | None, length: int):
        self.out, self.seed, self.deadline = out.resolve(), seed, deadline
        self.material = Material(self.out / "material", length)
        (self.out / "journals").mkdir(parents=True, exist_ok=True)

    def play(self, name: str, rounds: int) -> dict | None:
        """Play the rounds of an experiment that are not in its journal. Returns the line of the first loss, if any."""
        experiment, journal = EXPERIMENTS[name], self.journal(name)
        known = {line["seed"] for line in self.lines(name) if line["outcome"] != "lost"}
        for seed in range(self.seed, self.seed + rounds):
            if seed in known:
                continue
            if self.deadline is not None and time.monotonic() > self.deadline:
                logger.info("the time limit is reached; the same command resumes")
                return None
            folder = self.out / "rounds" / f"{name}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started, trouble = time.monotonic(), None
            try:
                found = experiment.play(self.material, Random(f"{name} {seed}"), folder)
            except Lost as error:
                found, trouble = Round("", "lost", {}), " ".join(str(error).split())
            line = {"seed": seed, **found._asdict(), "seconds": round(time.monotonic() - started, 2)}
            line |= {} if trouble is None else {"trouble": trouble}
            with journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if trouble is not None:
                logger.info(f"{name}, seed {seed}: LOST: {trouble}\nits files are in {folder}; to repeat it:\n"
                            f"python scripts/soak.py --experiments {name} --rounds 1 --seed {seed}")  # fmt: skip
                return line
            shutil.rmtree(folder)
            for path in folder.parent.glob(f"{folder.name}.*"):
                path.unlink()
        return None

    def journal(self, name: str) -> Path:
        return self.out / "journals" / f"{name}.jsonl"

    def lines(self, name: str) -> list[dict]:
        """The lines of a journal, the last one of each seed; one that a kill cut short is left out."""
        if not self.journal(name).exists():
            return []
        found = {}
        for text in self.journal(name).read_text().splitlines():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                found[line["seed"]] = line
        return list(found.values())

    def report(self) -> str:
        """A table of all journals, written to report.md; the numbers beside it in report.json."""
        rows, numbers = [], {}
        for name, experiment in EXPERIMENTS.items():
            lines = self.lines(name)
            if not lines:
                continue
            counts = Counter((line["kind"], line["outcome"]) for line in lines)
            seconds = sum(line["seconds"] for line in lines)
            for (kind, outcome), number in sorted(counts.items()):
                rows.append([name, kind, str(number), outcome])
            numbers[name] = {"about": experiment.about, "rounds": len(lines), "seconds": seconds,
                             "outcomes": [[*key, number] for key, number in sorted(counts.items())]}  # fmt: skip
        table = markdown_table(["experiment", "what", "rounds", "outcome"], rows)
        write_atomically(self.out / "report.md", table + "\n")
        write_atomically(self.out / "report.json", json.dumps(numbers, indent=1))
        return table
