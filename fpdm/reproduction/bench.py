"""Networks on natural images, trained for equal time, with what scores them.

`Bench` holds what all sections of the report share; fpdm.reproduction.bench_report has the sections.
"""

import os
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.chain import ROOT, run_script
from fpdm.config import ScoringConfig
from fpdm.data.batches import to_signed, to_uint8
from fpdm.data.codec import PIXELS, open_codec
from fpdm.data.images import HELD_OUT, TRAINING
from fpdm.devices import process_state
from fpdm.evaluation.comparison import Score
from fpdm.evaluation.evaluate import open_features
from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import score_name
from fpdm.evaluation.weights import weights_key
from fpdm.reproduction.contenders import Trained, load_trained
from fpdm.reproduction.contest import Contest, Entrant
from fpdm.reproduction.scoring import Scored, Scores, Setting
from fpdm.sampling.settings import SamplingConfig

CLASSIFIER = ROOT / "assets" / "cifar10-classifier"
RESOLUTION = 32
SAMPLERS = ("ddim", "ab2", "dpm++")
ITERATIONS = (1, 2, 4)
KEPT = 5  # forms of the section `core`
FEW = 1_000  # images of a score that only chooses between ways of sampling


class Subject(NamedTuple):
    """A data set with its contest.

    configs: folder in configs/. vae: its folder in the repository, or pixels. entrants: by name; among them are dit-12,
    dit-3 and fpdm.
    rates: learning rates that are tried. budgets: block passes at which the entrants are scored; middle: the one at
    which single questions are asked. core: what only the section `core` trains, all with one recipe. forms: candidates
    for it, of which it trains those that are best in trials. core_rates: rates that are tried for all of these.
    """

    configs: str
    vae: str
    entrants: dict[str, Entrant]
    rates: tuple[float, ...]
    budgets: tuple[int, ...]
    middle: int
    core: dict[str, Entrant]
    forms: dict[str, Entrant]
    core_rates: tuple[float, ...]


class Bench:
    """The contest on this data, its scores, and the real images. All files are in `out`.

    images: the training images in class folders; a folder or a zip. samples: number of sampled images for a score.
    arguments: further ones of train.py for all. The others: see Contest and Setting.
    """

    def __init__(
        self, subject: Subject, images: str, out: Path, seconds: float, trial_seconds: float, samples: int,
        batch_size: int, at_once: int, deadline: float | None, arguments: tuple = (), precision: str = "no",
    ):  # fmt: skip
        self.subject, self.images, self.out, self.samples = subject, images, out, samples
        self.at_once, self.deadline = at_once, deadline
        self.vae = subject.vae if subject.vae == PIXELS else os.path.relpath(ROOT / subject.vae)
        for part, folder in ((TRAINING, "latents"), (HELD_OUT, "held-out")):
            if not (out / folder / "manifest.json").exists():
                run_script("encode_latents.py", "--images", f"{images}@{part}", "--vae", self.vae, "--resolution",
                           RESOLUTION, "--out", out / folder)  # fmt: skip
        common = ("--data.latents", out / "latents", "--data.vae", self.vae, "--validation.latents", out / "held-out",
                  "--validation.reference", f"{images}@{TRAINING}", "--validation.features", "classifier",
                  "--validation.weights", CLASSIFIER, *arguments)  # fmt: skip

        def contest(entrants: dict[str, Entrant], rates: tuple[float, ...], **more) -> Contest:
            return Contest(entrants, subject.configs, common, out, seconds, trial_seconds, rates, at_once, deadline,
                           **more)  # fmt: skip

        self.contest = contest(subject.entrants, subject.rates)
        self._core_contest = partial(contest, rates=subject.core_rates, thirds=(), steps_file="steps-core.json")
        self.batch_size, self.precision = batch_size, precision
        self._trained: dict[Path, Trained] = {}
        self._complete: list[Contest] = []

    @cached_property
    def candidates(self) -> Contest:
        """The contest of which only the trials are made."""
        return self._core_contest(self.subject.core | self.subject.forms)

    @cached_property
    def core(self) -> Contest:
        """The contest of the section `core`, with the KEPT forms that are best in their trials. The first use makes the
        trials."""
        trials = self.candidates.rate_trials(self.candidates.entrants)
        losses = {name: min(trial.loss for trial in trials[name]) for name in self.subject.forms}
        best = sorted(losses, key=losses.get)[:KEPT]
        return self._core_contest(self.subject.core | {name: self.subject.forms[name] for name in best})

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
        return self._scores("scores.json", self.samples)

    @cached_property
    def few(self) -> Scores:
        """Scores of few images."""
        return self._scores("scores-few.json", min(FEW, self.samples))

    def _scores(self, file: str, samples: int) -> Scores:
        threads = max(torch.get_num_threads() // self.at_once, 1)
        setting = Setting(self.out / file, CLASSIFIER, self.training.kept, self.held_out.kept, samples,
                          self.batch_size, self.precision, threads)  # fmt: skip
        return Scores(setting, self.at_once, self.deadline)

    @property
    def score_name(self) -> str:
        return score_name(self.features.extractor.name, self.samples)

    @property
    def classifier_key(self) -> str:
        return weights_key(str(CLASSIFIER / "model.safetensors"), "")

    def runs(self, name: str, third: int = 3, seeds: int | None = None) -> list[Path]:
        """The runs of an entrant at a length, one for each seed, or for the first `seeds` of them.

        The first call trains all entrants of its contest.
        """
        contest = self._contest_of(name)
        if contest not in self._complete:
            contest.train()
            self._complete.append(contest)
        return [contest.run(name, seed, third) for seed in range(contest.entrants[name].seeds)][:seeds]

    def _contest_of(self, name: str) -> Contest:
        return self.core if name in self.subject.core | self.subject.forms else self.contest

    def trained(self, run: Path) -> Trained:
        if run not in self._trained:
            self._trained[run] = load_trained(run, process_state().device, self.precision)
        return self._trained[run]

    def fill(self, wanted: Iterable[tuple[str, dict]], third: int = 3, seeds: int | None = None) -> None:
        """Compute scores, several at a time: (entrant, settings of a SamplingConfig), for the seeds as in `runs`."""
        self.scores.fill(
            Scored(run, SamplingConfig(**settings, seed=seed))
            for name, settings in wanted
            for seed, run in enumerate(self.runs(name, third, seeds))
        )

    def score(self, name: str, third: int = 3, seeds: int | None = None, **settings) -> list[Score]:
        """Scores of an entrant, one for each seed as in `runs`; model i is sampled with seed i."""
        return [self.scores.at(run, **settings, seed=seed) for seed, run in enumerate(self.runs(name, third, seeds))]

    def best(self, name: str, options: list[dict]) -> dict:
        """Of these settings, those with the best score of few images of the first seed."""
        run = self.runs(name, seeds=1)[0]
        self.few.fill(Scored(run, SamplingConfig(**settings)) for settings in options)
        return min(options, key=lambda settings: self.few.at(run, **settings).distance)

    def distances(self, name: str, third: int = 3, seeds: int | None = None, **settings) -> np.ndarray:
        return np.array([score.distance for score in self.score(name, third, seeds, **settings)])

    def ways(self, name: str) -> list[dict]:
        """How many updates a call may have: one way for a DiT."""
        iterative = self._contest_of(name).entrants[name].config.startswith("fpdm")
        return [{"iterations": k} for k in ITERATIONS] if iterative else [{}]

    @torch.inference_mode()
    def reconstructed(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, R, R) encoded, and decoded from the mean, on the CPU."""
        device = process_state().device
        codec = open_codec(self.vae, device)
        means = (codec.encode(to_signed(batch.to(device))).mean for batch in images.split(250))
        return torch.cat([to_uint8(codec.decode(mean)).cpu() for mean in means])

    def extract(self, images: Tensor) -> Tensor:
        """Features (N, F) on the CPU of uint8 images (N, 3, R, R)."""
        device = process_state().device
        return torch.cat([self.features.extractor(batch.to(device)).cpu() for batch in images.split(500)])
