"""A checkpoint as a diffusers pipeline, so that diffusers' schedulers can drive it.

Its folder is that of export.py, plus `scheduler/` and `model_index.json`.
"""

import inspect
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fpdm.conditionings import LABELS
from fpdm.config import check_range
from fpdm.damage import damaged
from fpdm.data.codec import Codec, PixelCodec, VAECodec, fingerprint
from fpdm.export import upload, write_export
from fpdm.files import new_folder
from fpdm.loading import load_checkpoint, make_source, open_model_codec
from fpdm.models import Denoiser, block_cost
from fpdm.precision import PRECISIONS
from fpdm.processes import Level, make_process
from fpdm.records import check_fields, read_object, shown
from fpdm.sampling.call import Call, ModelCalls, Source
from fpdm.sampling.guidance import Guidance, InternalGuidance
from fpdm.sampling.noise import attribute_vectors, check_labels
from fpdm.sampling.solving import Solving
from fpdm.scheduler_plan import plan_calls
from fpdm.schedulers import check_scheduler, default_scheduler, takes_variance

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class FPDMPipelineOutput(BaseOutput):
    """images: in the form given by output_type. block_passes: of one image, without guidance."""

    images: list | np.ndarray | Tensor
    block_passes: int


class FPDMPipeline(DiffusionPipeline):
    """Samples images from a FixedPointDiT or a DiT with a diffusers scheduler.

    facts: diffusion, codec, class names and attributes, as load_checkpoint returns them. vae: None for a model of
    pixels. Any discrete-timestep scheduler built with `from_config(pipe.scheduler.config)` works.
    """

    model_cpu_offload_seq = "model->vae"
    _optional_components = ["vae"]  # noqa: RUF012, as diffusers declares it

    def __init__(
        self,
        model: Denoiser,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        facts: dict | None = None,
    ):
        super().__init__()
        if facts is None:
            raise ValueError("facts=None: give a checkpoint's facts, as load_checkpoint returns them")
        self.register_modules(model=model, scheduler=scheduler, vae=vae)
        self.facts = facts
        self.process = make_process(facts["diffusion"])

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        weights: str = "ema",
        vae: str | None = None,
        scheduler: SchedulerMixin | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> "FPDMPipeline":
        """Load a folder written by save_pretrained or export.py, its Hub id, a run or a checkpoint.

        weights: ema, model or another average, for a run. vae: the VAE's new place, if it has moved. scheduler:
        replaces the saved one, or `default_scheduler`.
        """
        model, facts, folder = load_checkpoint(source, weights)
        codec = open_model_codec(model, facts, vae)
        saved = folder / "scheduler" / "scheduler_config.json"
        if scheduler is None and saved.is_file():
            scheduler = _saved_scheduler(saved)
        pipe = make_pipeline(model, facts, codec, scheduler)
        return pipe if torch_dtype is None else pipe.to(dtype=torch_dtype)

    def save_pretrained(self, save_directory: str | Path, history: dict[str, str] | None = None) -> None:
        """Write the pipeline and a model card to a new folder. Weights are saved as float32; half-precision weights
        stay rounded. history: see `export_model`."""
        folder, facts, model, codec = Path(save_directory), self.facts, self.model, self._codec()
        if model.dtype != torch.float32:
            model = deepcopy(model).float()
        if self.vae is not None and self.vae.dtype != torch.float32:  # rounded weights have another fingerprint
            codec = VAECodec(deepcopy(self.vae).float(), codec.source)
            facts = facts | {"codec_fingerprint": fingerprint(codec.vae)}
        with new_folder(folder) as partial:
            write_export(partial, model, facts, codec, history or {})
            self.scheduler.save_pretrained(partial / "scheduler")
            self.save_config(partial)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload the folder that save_pretrained writes; returns the URL of the commit."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, private, token)

    def enable_vae_slicing(self) -> None:
        """Decode one image at a time."""
        if self.vae is not None:
            self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        if self.vae is not None:
            self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large images in tiles."""
        if self.vae is not None:
            self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        if self.vae is not None:
            self.vae.disable_tiling()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | None = None,
        *,
        attributes: Sequence[float] | Sequence[Sequence[float]] | Sequence[dict[str, float]] | None = None,
        budget: int | None = None,
        num_inference_steps: int | None = None,
        iterations: int | Sequence[int] | None = None,
        reuse: bool | None = None,
        reuse_weight: float = 1.0,
        extrapolation: float = 0.0,
        anderson: int = 0,
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: Sequence[float] | None = None,
        internal_guidance: float = 1.0,
        internal_exit: int | None = None,
        internal_interval: Sequence[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["FPDMPipeline", int, Tensor, dict], dict] | None = None,
    ) -> FPDMPipelineOutput | tuple:
        """Sample one image for each class label; from a model that is conditioned on attributes, one for each vector.

        attributes: of each image, numbers in the order of the model's attributes, or {name: number} with all names.
        budget: block passes per image; the scheduler takes as many steps as fit, with one or two model calls per step.
            Give budget or num_inference_steps.
        iterations: per model call, one number for all calls or a list (FPDM only; 4 if not given).
        reuse, reuse_weight, extrapolation, anderson: see `Solving`.
        guidance_scale: 1 for none. guidance_channels, guidance_rescale, guidance_interval: see `Guidance`.
        internal_guidance, internal_exit, internal_interval: scale, exit and interval; see `InternalGuidance`.
        eta: for schedulers that use it. generator: for the noise, one for all images or one for each.
        latents: the initial noise (B, C, h, w); by default it comes from `generator`.
        output_type: pil, np (B, H, W, 3) or pt (B, 3, H, W) in 0..1, or latent (B, C, h, w).
        callback_on_step_end: called as (pipeline, position, timestep, {"latents": latents}) after each model call; it
            may return other latents.
        """
        y = self._conditions(class_labels, attributes)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        check_scheduler(self.scheduler, self.process)
        if isinstance(generator, list) and len(generator) != len(y):
            raise ValueError(
                f"generator: {len(generator)} generators for {len(y)} labels; give one, or one for each label"
            )
        accepted = inspect.signature(self.scheduler.step).parameters
        check_range(0, 1, eta=eta)
        if eta and "eta" not in accepted:
            raise ValueError(f"eta={eta}: {type(self.scheduler).__name__} does not use eta; leave it out")
        device = self._execution_device
        guidance = Guidance(
            guidance_scale, guidance_channels, guidance_interval, guidance_rescale, "guidance",
            InternalGuidance(internal_guidance, internal_exit, internal_interval),
        )  # fmt: skip
        solving = Solving(reuse, reuse_weight, extrapolation, anderson)
        calls = ModelCalls(self._source(device), y.to(device), guidance, solving)
        cost = calls.source.cost_with(guidance)
        made = plan_calls(self.scheduler, self.process, cost, budget, num_inference_steps, iterations, device)
        guidance.check_calls(self.process.times(), calls.source.early_head, calls.source.cost, made)

        shape = (len(y), *calls.source.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator, device, torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; the shape must be {shape}")
        latents = latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

        extra = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            time, updates = made[i]
            scaled = hasattr(self.scheduler, "scale_model_input")
            x = self.scheduler.scale_model_input(latents, t) if scaled else latents
            level = self.process.level(time)
            found = calls(x, time, level, updates)
            latents = self.scheduler.step(self._for_scheduler(found, x, level), t, latents, **extra).prev_sample
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, i, t, {"latents": latents}).pop("latents", latents)

        images = self._images(latents, output_type)
        self.maybe_free_model_hooks()
        passes = cost.total_blocks(updates for _, updates in made)
        return FPDMPipelineOutput(images, passes) if return_dict else (images, passes)

    def _source(self, device: torch.device) -> Source:
        """What one run samples from. Its codec only limits predicted pixels; latents are decoded at the end."""
        half = None if self.model.dtype == torch.float32 else self.model.dtype
        precision = next((name for name, dtype in PRECISIONS.items() if dtype == half), None)
        if precision is None:
            raise ValueError(f"the model is in {half}: use float32, float16 or bfloat16, as in pipe.to(torch.float32)")
        codec = PixelCodec() if self.vae is None else None
        cost, known = block_cost(self.model), self.facts.get("attributes")
        source = make_source(self.model, self.process, codec, precision, cost, known)
        return source._replace(device=device)

    def _for_scheduler(self, found: Call, x: Tensor, level: Level) -> Tensor:
        """The prediction, with its variance if the scheduler uses one. The mean of predicted pixels is clipped."""
        clips = self.vae is None and level.noise > 0  # without noise, x is the image whatever the mean is
        mean = self.process.mean_of(found.x0, x, level) if clips else found.mean
        learned = takes_variance(self.scheduler)
        return torch.cat([mean, found.variance], dim=1) if learned and found.variance is not None else mean

    def _conditions(self, class_labels, attributes) -> Tensor:
        """Labels (B,) or attributes (B, A), whichever the model is conditioned on; ValueError for the other."""
        of_labels = self.model.conditioned_on == LABELS
        wanted, other = (class_labels, attributes) if of_labels else (attributes, class_labels)
        if wanted is None or other is not None:
            what = "classes; give class_labels" if of_labels else "attributes; give attributes"
            raise ValueError(
                f"class_labels={class_labels}, attributes={attributes}: this model is conditioned on {what} alone"
            )
        if of_labels:
            return self._labels(class_labels)
        return attribute_vectors("attributes", attributes, self.facts["attributes"].names)

    def _labels(self, class_labels: int | Sequence[int]) -> Tensor:
        labels = [int(class_labels)] if isinstance(class_labels, Integral) else [int(label) for label in class_labels]
        if not labels:
            raise ValueError("class_labels=[]: give at least one label")
        check_labels("class_labels", labels, self.model.num_classes)
        return torch.tensor(labels)

    def _codec(self) -> PixelCodec | VAECodec:
        return PixelCodec() if self.vae is None else VAECodec(self.vae, str(self.facts["codec"]))

    def _images(self, latents: Tensor, output_type: str):
        if output_type == "latent":
            return latents
        images = (self._codec().decode(latents) / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).float().cpu().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays


def _saved_scheduler(path: Path) -> SchedulerMixin:
    """The scheduler of a scheduler_config.json; ValueError if diffusers does not have it, or refuses its settings."""
    found = read_object(path)
    check_fields(path, found, {"_class_name": str}, ["_class_name"])
    name = found["_class_name"]
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(
            f"{path}: _class_name={shown(name)}: diffusers has no scheduler of this name; restore the file"
        )
    with damaged(path, f"{path}: not the settings of a {name}", "restore the file"):
        return kind.from_pretrained(path.parent)


def make_pipeline(model: Denoiser, facts: dict, codec: Codec, scheduler: SchedulerMixin | None = None) -> FPDMPipeline:
    """A pipeline from the results of `load_checkpoint` and `open_model_codec`."""
    scheduler = scheduler or default_scheduler(make_process(facts["diffusion"]))
    return FPDMPipeline(model, scheduler, codec.vae if isinstance(codec, VAECodec) else None, facts)
