"""The Fréchet distance of sampled images while a model trains. Joins packages that do not import each other."""

from dataclasses import asdict

import torch
from accelerate.utils import gather_object

from fpdm.config import ExperimentConfig, ScoringConfig, ValidationConfig, check_choice
from fpdm.data.latents import LatentStore
from fpdm.devices import process_state
from fpdm.evaluation.accumulate import FeatureMoments
from fpdm.evaluation.evaluate import open_features
from fpdm.evaluation.features import EXTRACTORS
from fpdm.evaluation.metrics import frechet_distance
from fpdm.loading import make_source
from fpdm.models import Denoiser
from fpdm.processes import make_process
from fpdm.sampling.call import Source
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.setup import build_network, check_store, open_store_codec
from fpdm.training.validation import DISTANCE

WEIGHTS = {"inception": "inception", "dinov2": "dinov2", "dinov2-s": "dinov2", "classifier": "classifier"}


class SampledDistance:
    """A measure for `train`: the distance of sampled images from real ones. The processes share the sampling.

    Images depend on their number alone: they have the same noise and conditions each time and in every run.
    """

    def __init__(self, config: ExperimentConfig):
        """Opens what is needed, and checks that the settings fit the model. ValueError or FileNotFoundError if not."""
        self.settings, self.precision = config.validation, config.run.mixed_precision
        store = LatentStore(config.data.latents)
        check_store(config.data, store)
        self.state, self.process = process_state(), make_process(asdict(config.diffusion))
        self.codec = open_store_codec(config.data, store, self.state.device)
        self.attributes = store.kept_attributes
        pixels = [length * self.codec.downsampling for length in store.manifest.shape[1:]]
        features = open_features(scoring_of(self.settings), self.settings.reference, pixels)
        self.extractor, self.reference = features.extractor, features.reference(self.settings.reference).pool
        with torch.device("meta"):
            model = build_network(config, store.manifest.shape, len(store.manifest.class_names), store.manifest)
        try:
            for iterations in self._counts(model):
                plan_for(self._source(model), self._sampling(iterations))
        except ValueError as error:
            raise ValueError(f"validation: {error}") from error

    def __call__(self, model: Denoiser) -> dict[str, float]:
        """val_fd; for an FPDM the lowest over the numbers of iterations, and val_fd_2it, ... at each."""
        distances = {k: self._distance(model, k) for k in self._counts(model)}
        each = {f"{DISTANCE}_{k}it": value for k, value in distances.items() if k is not None}
        return {DISTANCE: min(distances.values())} | each

    @torch.inference_mode()
    def _distance(self, model: Denoiser, iterations: int | None) -> float:
        source, config = self._source(model), self._sampling(iterations)
        plan, count, size = plan_for(source, config), self.settings.samples, self.settings.batch_size
        mine = FeatureMoments()
        for first in range(0, count, size)[self.state.process_index :: self.state.num_processes]:
            images = sample_images(source, config, plan, range(first, min(first + size, count)))
            mine.add(self.extractor.features(images).pool)
        whole = FeatureMoments()
        sums = (None if value is None else value.cpu() for value in (mine.total, mine.products))
        for part in gather_object([(mine.count, *sums)]):
            whole.merge(FeatureMoments(*part))
        return frechet_distance(whole.statistics(), self.reference)

    def _source(self, model: Denoiser) -> Source:
        return make_source(model, self.process, self.codec, self.precision, attributes=self.attributes)

    def _counts(self, model: Denoiser) -> list[int | None]:
        return list(self.settings.iterations) if model.iterative else [None]

    def _sampling(self, iterations: int | None) -> SamplingConfig:
        return SamplingConfig(budget=self.settings.budget, iterations=iterations, sampler=self.settings.sampler)


def scoring_of(settings: ValidationConfig) -> ScoringConfig:
    """How the sampled images are scored; ValueError for features that do not exist, or that take no weights."""
    check_choice("validation.features", settings.features, EXTRACTORS)
    if settings.weights is None:
        return ScoringConfig(features=settings.features)
    if settings.features not in WEIGHTS:
        raise ValueError(
            f"validation.weights={settings.weights} with validation.features={settings.features}, which has no file of "
            "weights; remove validation.weights"
        )
    return ScoringConfig(features=settings.features, **{WEIGHTS[settings.features]: settings.weights})
