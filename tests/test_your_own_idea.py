"""docs/your-own-idea.md works: each of its sections is applied to a copy of the project, and its commands are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-own-idea.md").read_text()
# The page's commands at the size of a test; options given twice take the last value.
SMALL = {
    "train.py": ["--optim.steps", 4, "--optim.batch_size", 8, "--optim.warmup", 0, "--run.log_every", 2],
    "sample.py": ["--num-samples", 8],
}
# Section -> files that it touches, as the table says, tests and configs aside.
FILES = {
    "From a fork to a score": 1, "A solver": 1, "An allocation in the plan": 1, "An allocation at run time": 3,
    "A learning rate schedule": 1, "An injection": 1, "A block": 1, "A metric": 1,
}  # fmt: skip
# With them, recorded weights and outputs no longer hold.
CHANGE_THE_NETWORK = ("A block",)
# Tests that run over registries, settings and configs, or list them; the slow ones of these files do not.
CONCERNED = ["tests/test_config.py", "tests/test_configs.py", "tests/test_imports.py",
             "tests/processes/test_discrete.py", "tests/models/test_injections.py",
             "tests/evaluation/test_scores.py", "tests/evaluation/test_evaluate.py", "tests/sampling/test_plan.py",
             "tests/sampling/test_solvers.py"]  # fmt: skip
NOT_SLOW = "not tf32 and not two_processes and not light_modules"


class Change(NamedTuple):
    """kind: append, create or edit; text: what is appended or created, or a diff."""

    kind: str
    file: str
    text: str


class Section(NamedTuple):
    changes: list[Change]
    commands: list[str]

    @property
    def touched(self) -> set[str]:
        return {change.file for change in self.changes if change.file.startswith("fpdm/")}


def parse(text: str) -> Section:
    """Code blocks with the last file that was named before them, and commands."""
    changes, commands, file, kind = [], [], None, None
    pieces = re.split(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    for prose, language, code in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False):
        if named := re.findall(r"(Append to|Create|[Ii]n|into)\s+`([\w./-]+\.(?:py|yaml))`", prose):
            kind, file = named[-1]
        if language == "bash":
            commands += [line for line in code.splitlines() if line.startswith("python ")]
        elif language == "diff":
            changes.append(Change("edit", file, code))
        else:
            changes.append(Change({"Append to": "append", "Create": "create"}[kind], file, code))
    return Section(changes, commands)


TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
SECTIONS = dict(zip(TITLES, map(parse, re.split(r"^## .*$", PAGE, flags=re.MULTILINE)[1:]), strict=True))


def apply(change: Change, root: Path) -> None:
    path = root / change.file
    if change.kind == "create":
        assert not path.exists(), path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change.text)
    elif change.kind == "append":
        path.write_text(f"{path.read_text()}\n\n{change.text}")
    else:
        lines = change.text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        content = path.read_text()
        assert content.count(before) == 1, f"{change.file} does not hold what the page changes:\n{before}"
        path.write_text(content.replace(before, after))


@pytest.fixture
def fork(tmp_path, tmp_path_factory):
    """A copy of the project to change."""
    for folder in ("fpdm", "scripts", "configs", "tests", "assets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    features = tmp_path_factory.getbasetemp() / "features"  # one classifier for all: its data are the same
    features.mkdir(exist_ok=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "features").symlink_to(features, target_is_directory=True)
    return tmp_path


# Runs command lines one after the other in one process, as `python` would each: importing takes longest here.
DRIVER = """
import json, runpy, sys
for words in json.load(sys.stdin):
    sys.argv = words
    print(f"$ {words[0]}")
    runpy.run_path(words[0], run_name="__main__")
"""


def execute(words: list, folder: Path, lines: list[list] | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *map(str, words)], input=json.dumps(lines), capture_output=True, text=True,
                          timeout=300, env=environment, cwd=folder)  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def follow(section: Section, fork: Path, more: tuple[str, ...] = ()) -> list[str]:
    """Apply the changes, then run the commands, and more; what each of them printed."""
    for change in section.changes:
        apply(change, fork)
    lines = []
    for command in (*section.commands, *more):
        _, script, *words = shlex.split(command)
        small = [] if "--dry-run" in words else SMALL.get(Path(script).name, [])
        lines.append([script, *words[: words.index("--resume")], *map(str, small), *words[words.index("--resume") :]]
                     if "--resume" in words else [script, *words, *map(str, small)])  # fmt: skip
    said = execute(["-c", DRIVER], fork, lines)
    return re.split(r"^\$ scripts/", said, flags=re.MULTILINE)[1:]


ENCODE = next(c for c in SECTIONS["From a fork to a score"].commands if "encode_latents" in c)


def test_the_table_counts_the_files():
    """The number in the table's row is that of the files in the section that it links to."""
    rows = re.findall(r"^\| ([^|]*?) \| ([^|]*?) \| .* \| \[below\]\(#(.*?)\) \|$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): title for title in TITLES}
    assert len(rows) >= 8
    for idea, number, anchor in rows:
        if idea == "an experiment":
            assert sum(c.file.startswith("configs/") for c in SECTIONS[anchors[anchor]].changes) == int(number)
            continue
        touched = SECTIONS[anchors[anchor]].touched
        most = int(re.findall(r"\d+", number)[-1])
        assert 1 <= len(touched) <= most, (idea, touched)


@pytest.mark.parametrize("title", [title for title in TITLES if title != "What you touch"])
def test_each_example_touches_few_files(title):
    assert 1 <= len(SECTIONS[title].touched) <= FILES[title]


def test_from_a_fork_to_a_score_and_a_learning_rate_schedule(fork):
    section, schedule = SECTIONS["From a fork to a score"], SECTIONS["A learning rate schedule"]
    for change in schedule.changes:
        apply(change, fork)
    train = next(command for command in section.commands if "--run.name uncertainty" in command)
    said = follow(section, fork, (f"{train} --resume latest --optim.steps 6", *schedule.commands))
    assert "resumed at step 4 of 6" in said[-2]  # with its learned parameters
    assert "weighting: uncertainty" in said[1]  # the dry run
    logs = sorted((fork / "results" / "my-idea").glob("*/log.jsonl"))
    baseline, idea = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
    assert "objective" not in baseline[-1] and idea[-1]["objective"] != idea[-1]["loss"]
    scores = [
        json.loads((fork / "samples" / name / "score-cnn.json").read_text()) for name in ("baseline", "uncertainty")
    ]
    assert all(score["FD-cnn@8"] > 0 and score["sampling"]["block_passes"] == 60 for score in scores)
    assert (fork / "curves.png").exists()
    (log,) = (fork / "results" / "poly").glob("*/log.jsonl")
    rates = [json.loads(line)["lr"] for line in log.read_text().splitlines()]
    assert rates[0] == pytest.approx(1e-3 * 0.75**0.9) and rates[0] > rates[-1]
    assert yaml.safe_load((fork / "configs" / "my-idea" / "uncertainty.yaml").read_text())["extends"]


def test_the_projects_own_tests_pass_with_all_of_them(fork):
    """A fork may add to registries, settings and configs without a change of a test."""
    changes = [change for title in FILES if title not in CHANGE_THE_NETWORK for change in SECTIONS[title].changes]
    for change in changes:
        apply(change, fork)
    new = [change.file for change in changes if change.file.startswith("tests/")]
    pytest_quietly = ["-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    said = execute([*pytest_quietly, *CONCERNED, *new, "-k", NOT_SLOW], fork)
    assert re.search(r"^\d{3} passed", said.splitlines()[-1]), said[-2000:]


def test_a_solver_and_a_metric(fork):
    for change in SECTIONS["A metric"].changes:
        apply(change, fork)
    sampled, scored = follow(SECTIONS["A solver"], fork, tuple(SECTIONS["A metric"].commands))
    assert "8 images, 8 of them new" in sampled
    assert "mean_distance " in scored and "FD-cnn@8" in scored
    recipe = json.loads((fork / "samples" / "thresholded" / "samples.json").read_text())
    assert recipe["sampling"]["sampler"] == "thresholded"


def test_allocations(fork):
    plan_time, run_time = SECTIONS["An allocation in the plan"], SECTIONS["An allocation at run time"]
    follow(Section(plan_time.changes + run_time.changes, plan_time.commands + run_time.commands), fork)
    plan = json.loads((fork / "samples" / "middle" / "samples.json").read_text())["plan"]
    counts = [iterations for _, _, iterations in plan]
    assert counts.index(max(counts)) not in (0, len(counts) - 1) and max(counts) > min(counts)
    spent = json.loads((fork / "samples" / "tightening" / "allocation.json").read_text())
    assert spent["images"] == 8 and spent["block_passes"] <= 60


@pytest.mark.parametrize(("title", "run"), [("An injection", "injection"), ("A block", "sandwich")])
def test_networks(fork, title, run):
    follow(SECTIONS[title]._replace(commands=[ENCODE, *SECTIONS[title].commands]), fork)
    (weights,) = (fork / "results" / run).glob("*/checkpoints/0000004/ema/model.safetensors")
    assert weights.stat().st_size > 0
    if title == "A block":  # the released model has none of the new weights
        words = ["scripts/sample.py", "--ckpt", "assets/fpdm-digits", "--steps", "2"]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=fork, timeout=120,
                              env=os.environ | {"PYTHONPATH": str(fork)})  # fmt: skip
        assert done.returncode == 2 and "norm_after" in done.stderr and done.stderr.count("\n") == 1
