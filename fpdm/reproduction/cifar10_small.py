"""CIFAR-10 on a few CPU cores: 16x16 pixels, small networks, trained for equal time until they hardly improve.

`Bench` holds what all sections of the report share. Each section of fpdm.reproduction.cifar10_small_report reads it.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpdm.chain import ROOT, run_script
from fpdm.config import ScoringConfig
from fpdm.data.images import HELD_OUT, TRAINING
from fpdm.devices import process_state
from fpdm.evaluation.comparison import Score
from fpdm.evaluation.evaluate import open_features
from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.features import weights_key
from fpdm.evaluation.metrics import score_name
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.reproduction.contest import Contest, Entrant
from fpdm.reproduction.scoring import Scored, Scores, Setting
from fpdm.sampling.settings import SamplingConfig

CONFIGS = "cifar10-small"
RESOLUTION = 16
CLASSIFIER = ROOT / "assets" / "cifar10-classifier"
SAMPLERS = ("ddim", "ab2", "dpm++")
BUDGETS = (30, 60, 120, 240)
ITERATIONS = (1, 2, 4)
MIDDLE = 120  # block passes: 10 timesteps of the DiT with 12 blocks
RATES = (5e-4, 1e-3, 2e-3)


def _sjfb(variant: str, no_grad: int, grad: int) -> tuple:
    return ("--sjfb.variant", variant, "--sjfb.no_grad", no_grad, "--sjfb.grad", grad)


# N and M of Tab. 4 and 5; the first, few updates, was best on digits.
VARIANTS = {
    "n2-m3": _sjfb("stochastic", 2, 3),
    "n3-m3": _sjfb("stochastic", 3, 3),
    "n6-m6": _sjfb("stochastic", 6, 6),
    "n12-m12": _sjfb("stochastic", 12, 12),
    "multi-step-6": _sjfb("multi-step", 6, 6),
    "jfb-6": _sjfb("jfb", 6, 1),
}
NARROW = ("--model.hidden_size", 52)  # 12 blocks with as many parameters as the FPDM
ENTRANTS = {
    "dit-12": Entrant("DiT, 12 blocks", "dit", seeds=2),
    "fpdm": Entrant("FPDM", "fpdm", seeds=2, variants=VARIANTS),
    "dit-3": Entrant("DiT, 3 blocks", "dit", ("--model.depth", 3), seeds=2),
    "dit-narrow": Entrant("DiT, 12 narrow blocks", "dit", NARROW),
    "dit-6": Entrant("DiT, 6 blocks", "dit", ("--model.depth", 6)),
}


class Bench:
    """The contest on this data, its scores, and the real images. All files are in `out`.

    images: the training images in class folders; a folder or a zip. samples: number of sampled images for a score.
    arguments: further ones of train.py for all. The others: see Contest and Setting.
    """

    def __init__(
        self, images: str, out: Path, seconds: float, trial_seconds: float, samples: int, batch_size: int,
        at_once: int, deadline: float | None, arguments: tuple = (), precision: str = "no",
    ):  # fmt: skip
        self.images, self.out, self.samples, self.at_once, self.deadline = images, out, samples, at_once, deadline
        for part, folder in ((TRAINING, "latents"), (HELD_OUT, "held-out")):
            if not (out / folder / "manifest.json").exists():
                run_script("encode_latents.py", "--images", f"{images}@{part}", "--vae", "pixels", "--resolution",
                           RESOLUTION, "--out", out / folder)  # fmt: skip
        common = ("--data.latents", out / "latents", "--validation.latents", out / "held-out",
                  "--validation.reference", f"{images}@{TRAINING}", "--validation.weights", CLASSIFIER,
                  *arguments)  # fmt: skip
        self.contest = Contest(ENTRANTS, CONFIGS, common, out, seconds, trial_seconds, RATES, at_once, deadline)
        self.batch_size, self.precision = batch_size, precision
        self._trained: dict[Path, Trained] = {}
        self._complete = False

    @cached_property
    def features(self):
        """The extractor, with its features of the real images kept in out/features."""
        config = ScoringConfig(features="classifier", classifier=str(CLASSIFIER), cache=str(self.out / "features"))
        return open_features(config, f"{self.images}@{TRAINING}", RESOLUTION)

    @cached_property
    def training(self) -> Gathered:
        """Features of the images that are trained on."""
        return self.features.reference(f"{self.images}@{TRAINING}")

    @cached_property
    def held_out(self) -> Gathered:
        """Features of the held-out images."""
        return self.features.reference(f"{self.images}@{HELD_OUT}")

    @cached_property
    def scores(self) -> Scores:
        threads = max(torch.get_num_threads() // self.at_once, 1)
        setting = Setting(self.out / "scores.json", CLASSIFIER, self.training.pool, self.samples, self.batch_size,
                          self.precision, threads)  # fmt: skip
        return Scores(setting, self.at_once, self.deadline)

    @property
    def score_name(self) -> str:
        return score_name(self.features.extractor.name, self.samples)

    @property
    def classifier_key(self) -> str:
        return weights_key(str(CLASSIFIER / "model.safetensors"), "")

    def runs(self, name: str, third: int = 3) -> list[Path]:
        """The runs of an entrant at a length, one for each seed. The first call trains all entrants."""
        if not self._complete:
            self.contest.train()
            self._complete = True
        return [self.contest.run(name, seed, third) for seed in range(ENTRANTS[name].seeds)]

    def trained(self, run: Path) -> Trained:
        if run not in self._trained:
            self._trained[run] = load_trained(run, process_state().device, self.precision)
        return self._trained[run]

    def fill(self, wanted: Iterable[tuple[str, dict]], third: int = 3) -> None:
        """Compute scores, several at a time: (entrant, settings of a SamplingConfig), for all its seeds."""
        self.scores.fill(
            Scored(run, SamplingConfig(**settings, seed=seed))
            for name, settings in wanted
            for seed, run in enumerate(self.runs(name, third))
        )

    def score(self, name: str, third: int = 3, **settings) -> list[Score]:
        """Scores of an entrant, one for each seed; model i is sampled with seed i."""
        return [self.scores.at(run, **settings, seed=seed) for seed, run in enumerate(self.runs(name, third))]

    def distances(self, name: str, third: int = 3, **settings) -> np.ndarray:
        return np.array([score.distance for score in self.score(name, third, **settings)])

    def ways(self, name: str) -> list[dict]:
        """How many updates a call may have: one way for a DiT."""
        return [{"iterations": k} for k in ITERATIONS] if name == "fpdm" else [{}]

    def extract(self, images: Tensor) -> Tensor:
        """Features (N, F) on the CPU of uint8 images (N, 3, R, R)."""
        device = process_state().device
        return torch.cat([self.features.extractor(batch.to(device)).cpu() for batch in images.split(500)])
