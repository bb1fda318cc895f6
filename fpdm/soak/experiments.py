"""The experiments by name."""

from functools import partial

from fpdm.soak import kills
from fpdm.soak.outcome import Experiment
from fpdm.soak.works import WORKS


def _killed(about: str, rounds: int, *begins: str) -> Experiment:
    works = {name: work for name, work in WORKS.items() if name.startswith(begins)}
    return Experiment(f"SIGKILL: {about}", rounds, partial(kills.play, works))


EXPERIMENTS: dict[str, Experiment] = {
    "kill-training": _killed("training, alone and in two processes", 500, "train FPDM", "train DiT"),
    "kill-preparation": _killed(
        "training a VAE or a classifier, encoding", 250, "train VAE", "train classifier", "encode"
    ),
    "kill-sampling": _killed("sampling and scoring", 200, "sample", "evaluate"),
}
