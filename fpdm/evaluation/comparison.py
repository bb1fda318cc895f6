"""Scores of several models with several sampling configs. Each score is computed once and kept in a file."""

import json
import logging
import time
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fpdm.evaluation.metrics import Memorisation, frechet_distance, nearest, statistics
from fpdm.files import write_atomically
from fpdm.records import check_fields, read_object, shown
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for, sample_images, total_flops
from fpdm.sampling.plan import describe
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.trace import Spent

logger = logging.getLogger("fpdm")


class Contender(NamedTuple):
    """A model to sample from. key: identifies its weights."""

    name: str
    key: str
    source: Source


class Score(NamedTuple):
    """Fréchet distance of `images` samples, and the cost of one image (the mean, with adaptive allocation).

    nearest, memorised: see `Memorisation`; None without held-out images.
    """

    distance: float
    timesteps: int
    block_passes: float
    gflops: float
    ms_per_image: float
    nearest: float | None = None
    memorised: float | None = None


def _check_score(path: Path, key: str, values: Any) -> None:
    """ValueError if what a file holds under a key is not a score."""
    names, where = Score._fields, f"{path}: {shown(key)}"
    if not isinstance(values, list) or len(values) > len(names):
        raise ValueError(f"{where}: {shown(values)}: expected a list, {', '.join(names)}; remove it, and run again")
    needed = [name for name in names if name not in Score._field_defaults]
    check_fields(where, dict(zip(names, values, strict=False)), get_type_hints(Score), needed)


class ScoreBook:
    """Scores by (weights, sampling config, features, number of images).

    path: JSON file for the scores, so that an interrupted comparison can resume.
    extractor: uint8 images (B, 3, R, R) -> features (B, F); extractor_key: identifies it.
    real: features (N, F) of the real images that the models are trained on. held_out: of others, if there are any, to
    measure memorisation.
    """

    def __init__(
        self, path: Path, extractor: nn.Module, extractor_key: str, real: Tensor, images: int, batch_size: int,
        held_out: Tensor | None = None,
    ):  # fmt: skip
        self.path, self.extractor, self.extractor_key = path, extractor, extractor_key
        self.real, self.held_out, self.images, self.batch_size = real, held_out, images, batch_size
        self.reference = statistics(real)
        self._known = read_object(path) if path.exists() else {}
        for key, values in self._known.items():
            _check_score(path, key, values)

    @cached_property
    def _near(self) -> Tensor:
        return nearest(self.held_out, self.real)

    def score(self, contender: Contender, config: SamplingConfig) -> Score:
        """The score, computed now if it is not in the book."""
        if not self.knows(contender, config):
            self.add(contender, config, self.compute(contender, config))
        return Score(*self._known[self._key(contender, config)])

    def knows(self, contender: Contender, config: SamplingConfig) -> bool:
        """Whether the score is in the book."""
        return self._key(contender, config) in self._known

    def add(self, contender: Contender, config: SamplingConfig, score: Score) -> None:
        """Write a score into the book and its file."""
        self._known[self._key(contender, config)] = score
        write_atomically(self.path, json.dumps(self._known, indent=1))

    def _key(self, contender: Contender, config: SamplingConfig) -> str:
        # Settings that were not changed are left out: scores stay known when an option is added.
        changed = {field.name: getattr(config, field.name) for field in fields(config)
                   if getattr(config, field.name) != field.default}  # fmt: skip
        return json.dumps([contender.key, changed, self.images, self.extractor_key], sort_keys=True)

    @torch.inference_mode()
    def compute(self, contender: Contender, config: SamplingConfig) -> Score:
        """The score, computed anew; it is not written into the book."""
        source = contender.source
        plan = plan_for(source, config)
        spent = Spent(plan) if ALLOCATIONS[config.allocation].at_run_time is not None else None
        reuse = ", reuse" if source.reuses(config.reuse) else ""
        logger.info(f"{contender.name}, {config.sampler}{reuse}: {describe(plan, total_flops(config, plan))}")
        features, started = [], time.perf_counter()
        with tqdm(total=self.images, desc=f"sample {contender.name}", unit="image", leave=False) as progress:
            for first in range(0, self.images, self.batch_size):
                indices = range(first, min(first + self.batch_size, self.images))
                features.append(self.extractor(sample_images(source, config, plan, indices, spent)).cpu())
                progress.update(len(indices))
        seconds = time.perf_counter() - started
        updates = plan.iterations if spent is None else spent.mean()
        features, near = torch.cat(features), {}
        if self.held_out is not None:
            found = Memorisation.of(nearest(features, self.real), self._near)
            near = {"nearest": found.nearest, "memorised": found.memorised}
        return Score(
            distance=frechet_distance(statistics(features), self.reference),
            timesteps=len(plan.steps),
            block_passes=plan.cost.total_blocks(updates),
            gflops=total_flops(config, plan, updates) / 1e9,
            ms_per_image=1000 * seconds / self.images,
            **near,
        )
