"""Train a DiT or an FPDM on a latent store: one process, or several under torchrun or accelerate launch."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from fpdm import cli
from fpdm.config import ExperimentConfig, check_choice, check_positive, limits
from fpdm.data.latents import LatentStore
from fpdm.devices import process_state
from fpdm.loading import load_checkpoint, make_source
from fpdm.models.origins import INIT_RULES
from fpdm.processes import make_process
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.images import save_grid
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.dry_run import describe_run, device_gib
from fpdm.training.loop import train
from fpdm.training.setup import check_store, open_store_codec
from fpdm.training.start import Init, check_start
from fpdm.validation import SampledDistance

logger = logging.getLogger("fpdm")
PREVIEW_IMAGES = 16
PREVIEW_BATCH = 4  # decoding needs less memory than a step
PREVIEW_BUDGET = 280  # the paper's middle budget for a DiT of 28 blocks; a shallower one takes more steps


@dataclass
class Settings(ExperimentConfig):
    __doc__ = (
        ExperimentConfig.__doc__
        + f"""    resume: latest (newest run of this name), auto (the same, or a new run if there is none),
            a run's folder or one of its checkpoints.
        fork: a run's folder or one of its checkpoints, from which a new run starts, for example to cool it down
            (optim.cooldown); with resume auto, only if there is no run of this name yet.
        init: weights that the network of a new run starts from: a run's folder, one of its checkpoints, or an exported
            folder or its Hub id; with resume auto, only if there is no run of this name yet.
        init_weights: with init, which of its weights: ema, model, or another average.
        init_rule: with init, how an FPDM's implicit blocks are made of a DiT's middle ones:
            {", ".join(f"{name} ({rule.about})" for name, rule in INIT_RULES.items())}; copy if not given.
        dry_run: print the resolved config, the network, the cost of a step and its expected memory, then exit.
        gpu_memory: with dry_run, memory of one GPU in GiB, to print whether the largest step fits and, if not,
            which micro-batch would (null for the memory of this machine's GPU, if there is one).
    """
    )

    resume: str | None = None
    fork: str | None = None
    init: str | None = None
    init_weights: str = "ema"
    init_rule: str | None = None
    dry_run: bool = False
    gpu_memory: float | None = None

    def __post_init__(self):
        check_positive(limits.GPU_GIB, gpu_memory=self.gpu_memory)
        if self.gpu_memory is not None and not self.dry_run:
            raise ValueError(f"gpu_memory={self.gpu_memory:g} without dry_run: only a dry run uses it; add --dry-run")
        check_start(self.resume, self.fork, self.init)
        for name, unset in (("init_weights", "ema"), ("init_rule", None)):
            if self.init is None and getattr(self, name) != unset:
                raise ValueError(f"{name}={getattr(self, name)} without init: there are no weights; add --init PATH")
        if self.init_rule is not None:
            check_choice("init_rule", self.init_rule, INIT_RULES)

    def start(self) -> Init | None:
        """The weights to start from, if there are any."""
        return None if self.init is None else Init(self.init, self.init_weights, self.init_rule, load_checkpoint)


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    experiment = ExperimentConfig(**{name: getattr(settings, name) for name in ExperimentConfig.__dataclass_fields__})
    if not process_state().is_main_process:
        logging.getLogger("fpdm").setLevel(logging.ERROR)
    if settings.dry_run:
        if process_state().is_main_process:  # one prints for all
            gpu_gib = settings.gpu_memory or device_gib()
            logger.info(describe_run(experiment, process_state().num_processes, gpu_gib, settings.start()))
        return
    if not settings.data.latents:
        raise ValueError("data.latents is not set; give the store that encode_latents (fpdm-encode-latents) wrote")
    preview = make_preview(experiment) if settings.run.preview_every and process_state().is_main_process else None
    measured = settings.run.validate_every and settings.validation.reference is not None
    measure = SampledDistance(experiment) if measured else None
    try:
        train(experiment, settings.resume, preview, measure, settings.fork, settings.start())
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of memory: {error} Lower optim.micro_batch_size, or set run.gradient_checkpointing; "
            "--dry-run prints what a step needs"
        ) from error


def make_preview(config: ExperimentConfig):
    """A callback that samples a grid from the EMA into the run's samples/."""
    store = LatentStore(config.data.latents)
    check_store(config.data, store)
    codec = open_store_codec(config.data, store, process_state().device)
    process = make_process(asdict(config.diffusion))

    def preview(run: Path, step: int, model: nn.Module) -> None:
        source = make_source(model, process, codec, attributes=store.kept_attributes)
        sampling = SamplingConfig(budget=PREVIEW_BUDGET, seed=config.run.seed)
        plan, indices = plan_for(source, sampling), range(PREVIEW_IMAGES)
        parts = [indices[i : i + PREVIEW_BATCH] for i in range(0, PREVIEW_IMAGES, PREVIEW_BATCH)]
        images = torch.cat([sample_images(source, sampling, plan, part) for part in parts])
        (run / "samples").mkdir(exist_ok=True)
        save_grid(images, run / "samples" / f"{step:07d}.png")

    return preview


def run() -> None:
    """The command fpdm-train: main(), with one-line error messages."""
    cli.run(main)
