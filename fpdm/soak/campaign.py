"""A campaign: rounds of experiments, one line of a journal each, until the first loss, the time limit, or the end."""

import json
import logging
import shlex
import shutil
import time
from contextlib import suppress
from pathlib import Path

from fpdm.soak.code import state_of_code
from fpdm.soak.experiments import EXPERIMENTS
from fpdm.soak.material import Material
from fpdm.soak.outcome import Draws, Lost, Round

logger = logging.getLogger("fpdm")
LOST = "lost"


class Campaign:
    """The files of a campaign in `out`: journals/<experiment>.jsonl, the material, and the folder of the round.

    The material belongs to a state of the code: another one gets its own, so that no result is compared with one of
    other code.
    """

    def __init__(self, out: Path, seed: int, deadline: float | None, length: int):
        self.out, self.seed, self.deadline, self.length = out.resolve(), seed, deadline, length
        self.commit, digest = state_of_code()
        self.material = Material(self.out / "material" / digest, length)
        for folder in (self.out / "journals", self.material.folder):
            folder.mkdir(parents=True, exist_ok=True)

    def play(self, name: str, rounds: int | None) -> dict | None:
        """Play the rounds of an experiment that are not in its journal; all of a full campaign if rounds is None.
        Returns the line of the first loss, if any."""
        known = {line["seed"] for line in self.last_lines(name) if line["outcome"] != LOST}
        if rounds is None:
            rounds = EXPERIMENTS[name].rounds
            rounds = rounds(self.material) if callable(rounds) else rounds
        for seed in range(self.seed, self.seed + rounds):
            if seed in known:
                continue
            if self.deadline is not None and time.monotonic() > self.deadline:
                logger.info("the time limit is reached; the same command resumes")
                return None
            line = self._round(name, seed)
            if line["outcome"] == LOST:
                return line
        return None

    def _round(self, name: str, seed: int) -> dict:
        """One round, its line in the journal, and, if it lost nothing, its files removed."""
        folder = self.out / "rounds" / f"{name}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started, trouble = time.monotonic(), None
        try:
            found = EXPERIMENTS[name].play(self.material, Draws.of(name, seed), folder)
        except Lost as error:
            found, trouble = Round("", LOST, {}), " ".join(str(error).split())
        except Exception as error:  # of the campaign itself: it ends, and its journal says why
            logger.exception(f"{name}, seed {seed}")
            found, trouble = Round("", LOST, {}), f"the round failed: {error!r}"
        line = {"seed": seed, **found._asdict(), "seconds": round(time.monotonic() - started, 2),
                "commit": self.commit}  # fmt: skip
        line |= {} if trouble is None else {"trouble": trouble}
        with self.journal(name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if trouble is None:
            shutil.rmtree(folder)
            for path in folder.parent.glob(f"{folder.name}.*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return line
        words = ["python", "scripts/soak.py", "--experiments", name, "--rounds", 1, "--seed", seed, "--length",
                 self.length, "--out", self.out]  # fmt: skip
        logger.info(f"{name}, seed {seed}: LOST: {trouble}\nits files are in {folder}; to repeat it:\n"
                    f"{shlex.join(map(str, words))}")  # fmt: skip
        return line

    def journal(self, name: str) -> Path:
        return self.out / "journals" / f"{name}.jsonl"

    def lines(self, name: str) -> list[dict]:
        """The lines of a journal, without those that a kill cut short."""
        found = []
        for text in self.journal(name).read_text().splitlines() if self.journal(name).exists() else ():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(text))
        return found

    def last_lines(self, name: str) -> list[dict]:
        """The last line of each seed. One that was lost before, and not the last time, says so: `losses` of them."""
        found: dict[int, dict] = {}
        for line in self.lines(name):
            before = found.get(line["seed"], {})
            losses = before.get("losses", 0) + (before.get("outcome") == LOST)
            found[line["seed"]] = line | ({"losses": losses} if losses else {})
        return list(found.values())
