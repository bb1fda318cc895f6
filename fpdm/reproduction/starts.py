"""What it saves to start from another network's weights, beside the same network from a random start.

Every arm has a learning rate of its own, which stays constant, so that its loss can be read at every step.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fpdm.evaluation.figures import Curve, plot_losses
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.seeds import spread
from fpdm.evaluation.tables import markdown_table
from fpdm.reproduction.contest import last_loss, validations
from fpdm.reproduction.digits import hold_out
from fpdm.reproduction.experiments import Laboratory, Section
from fpdm.reproduction.rates import best_rate, try_rates
from fpdm.reproduction.trainings import Training, config_path

RATES = (5e-4, 1e-3, 2e-3)
POINTS = 40  # validations of a training
SHARES = (0.1, 0.25, 0.5, 1.0)  # of the training, at which the loss is in the table
SCORED, ITERATIONS = {"budget": 60, "sampler": "ab2"}, 2
LOOSE = {"model.injection": "add", "model.pre_post_timestep_conditioning": "true"}


class Start(NamedTuple):
    """source: name of an experiment, or of a network here of which the random starts are used; None for a random start.
    rule: how implicit blocks are made of a DiT's."""

    label: str
    source: str | None = None
    rule: str | None = None


class Network(NamedTuple):
    """options: of train.py, beside the config. seed: of the first run; a run with its source's seed would repeat the
    source's steps."""

    label: str
    seed: int
    options: dict[str, object]
    starts: tuple[Start, ...]
    config: str = "fpdm"


RANDOM = Start("random")
NETWORKS = {
    "add": Network("FPDM, injection `add`", 100, LOOSE, (
        RANDOM, Start("a DiT, `copy`", "dit", "copy"), Start("a DiT, `average`", "dit", "average"))),
    "mlp": Network("the paper's FPDM", 200, {}, (RANDOM, Start("a DiT, `copy`", "dit", "copy"))),
    "loop": Network("3 blocks in the loop, `add`", 300, LOOSE | {"model.implicit_depth": 3}, (
        RANDOM, Start("the FPDM with `add`", "add"))),
    "deep": Network("DiT, 6 blocks", 400, {"model.depth": 6}, (
        RANDOM, Start("a DiT, 3 blocks", "dit-3-blocks")), "dit"),
}  # fmt: skip


class Arm(NamedTuple):
    """A network with a start: its learning rate, its steps, and the folders of its runs, one for each seed."""

    start: Start
    rate: float
    steps: int
    runs: list[Path]

    def losses(self) -> tuple[list[int], np.ndarray]:
        """Steps (P,), and the loss on held-out latents there (seeds, P)."""
        lines = [validations(run) for run in self.runs]
        return [line["step"] for line in lines[0]], np.array([[line["val_loss"] for line in each] for each in lines])


def starts(lab: Laboratory) -> Section:
    """Losses and final scores of every network from every start."""
    hold_out(lab.out)
    rows, panels, random = [], {}, {}
    for key, network in NETWORKS.items():
        arms = [_arm(lab, key, start, random) for start in network.starts]
        random[key] = arms[0]
        goals = arms[0].losses()[1][:, -1]
        panels[network.label] = []
        for arm in arms:
            steps, losses = arm.losses()
            at = [losses[:, max(round(share * len(steps)), 1) - 1] for share in SHARES]
            models = lab.trained([_training(lab, key, arm.start, arm.rate, arm.steps, seed, random)
                                  for seed in range(lab.seeds)])  # fmt: skip
            way = SCORED | ({"iterations": ITERATIONS} if models[0].contender.source.iterative else {})
            score = spread(lab.score_models(models, **way).distances)
            rows.append([network.label, arm.start.label, f"{arm.rate:g}", *map(_loss, at),
                         _reached(steps, losses, goals), score])  # fmt: skip
            deviations = losses.std(0, ddof=1) if len(losses) > 1 else np.zeros(len(steps))
            panels[network.label].append(Curve(arm.start.label, steps, list(losses.mean(0)), list(deviations)))
    plain = {title.replace("`", ""): [curve._replace(label=curve.label.replace("`", "")) for curve in curves]
             for title, curves in panels.items()}  # fmt: skip
    plot_losses(plain, "training steps", "loss on held-out digits", lab.out / "starts.png")
    head = ["network", "start", "rate", *(f"loss at {share:.0%}" for share in SHARES), "random's last loss reached at",
            score_name("cnn", lab.book.images)]  # fmt: skip
    text = (
        f"{lab.seconds:g} s of training each, {lab.jobs} at a time, {lab.seeds} seeds, constant rates: for each start "
        f"the best of {', '.join(f'{rate:g}' for rate in RATES)} by the last loss of one seed, and of half and twice "
        "the best where that is at an edge. The time that the training of the source took is not counted. The loss on "
        "held-out digits is that of the averaged weights, and for an FPDM the lowest over the iterations. Scores: "
        f"{SCORED['sampler']}, {SCORED['budget']} passes, an FPDM with {ITERATIONS} iterations."
    )
    picture = "![loss over training steps](starts.png)"
    return Section("Starting from weights", f"{text}\n\n{picture}\n\n{markdown_table(head, rows, 2)}")


def _arm(lab: Laboratory, key: str, start: Start, random: dict[str, Arm]) -> Arm:
    """The arm, trained. random: the arms with a random start so far, by network."""
    steps = _steps(lab, key)

    def attempt(pairs: list[tuple[str, float]]) -> list[float]:
        runs = lab.trainings.attempt(_training(lab, key, start, rate, steps, 0, random) for _, rate in pairs)
        return list(map(last_loss, runs))

    rate = best_rate(try_rates([key], RATES, attempt, float)[key], float)
    runs = lab.trainings.train([_training(lab, key, start, rate, steps, seed, random) for seed in range(lab.seeds)])
    return Arm(start, rate, steps, runs)


def _training(
    lab: Laboratory, key: str, start: Start, rate: float, steps: int, seed: int, random: dict[str, Arm]
) -> Training:
    words = (*_words(lab, key), "--run.seed", NETWORKS[key].seed + seed, "--optim.lr", f"{rate:g}",
             "--validation.latents", lab.out / "held-out", "--run.validate_every", max(steps // POINTS, 1),
             "--run.keep_last", 1)  # fmt: skip
    if start.source is not None:
        words += ("--init", _source(lab, start.source, seed, random))
    if start.rule is not None:
        words += ("--init-rule", start.rule)
    name = "-".join(["start", key, *filter(None, (start.source, start.rule)), f"{rate:g}", f"seed{seed}"])
    return Training(name, steps, words)


def _source(lab: Laboratory, name: str, seed: int, random: dict[str, Arm]) -> Path:
    """The run of this seed whose weights are taken."""
    if name in random:
        return random[name].runs[seed]
    lab.models(name)  # trained, if it is not yet
    return lab.trainings.find(f"{name}-seed{seed}")


def _steps(lab: Laboratory, key: str) -> int:
    """Steps in the laboratory's seconds, measured once against the first experiment's."""
    first = next(iter(lab.data.experiments))
    words = {first: lab.train_arguments(first, 0), f"start-{key}": _words(lab, key)}
    return lab.equal_time(f"start-{key}", words, (first, lab.steps_of(first)))[f"start-{key}"]


def _words(lab: Laboratory, key: str) -> tuple:
    options = [word for name, value in NETWORKS[key].options.items() for word in (f"--{name}", value)]
    return ("--config", config_path(lab.data.configs, NETWORKS[key].config), "--data.latents", lab.out / "latents",
            "--optim.lr_schedule", "constant", *options, *lab.arguments)  # fmt: skip


def _reached(steps: list[int], losses: np.ndarray, goals: np.ndarray) -> str:
    """The steps at which each seed's loss is first at its goal, as a share of all: mean and deviation."""
    found = [next((step for step, loss in zip(steps, each, strict=True) if loss <= goal), None)
             for each, goal in zip(losses, goals, strict=True)]  # fmt: skip
    if None in found:
        return f"not reached by {found.count(None)} of {len(found)}"
    shares = np.array(found) / steps[-1]
    return f"{shares.mean():.0%} ± {shares.std(ddof=1):.0%}" if len(shares) > 1 else f"{shares[0]:.0%}"


def _loss(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" if len(values) > 1 else f"{values[0]:.4f}"
