"""One training experiment: the content of a file in configs/."""

from dataclasses import dataclass, field
from inspect import signature

from fpdm.block_options import MLPS, NORMS, POSITIONS
from fpdm.conditionings import CONDITIONINGS
from fpdm.config import limits
from fpdm.config.checks import check_choice, check_positive, check_range
from fpdm.config.optim import OptimConfig
from fpdm.config.sjfb import SJFBConfig
from fpdm.config.validation import ValidationConfig
from fpdm.injections import INJECTIONS
from fpdm.precision import PRECISIONS
from fpdm.processes import PROCESSES
from fpdm.processes.draws import DRAWS, TimestepDraw
from fpdm.weightings import WEIGHTINGS

TRACKERS = ("none", "tensorboard", "wandb")


@dataclass
class ModelConfig:
    __doc__ = f"""The network. Settings left at null follow from its name; the data determines the rest.

    Args:
        name: FAMILY-SIZE/PATCH, such as FPDM-XL/2 or DiT-B/4.
        hidden_size: width, if not the named size's.
        num_heads: number of attention heads, if not the named size's.
        depth: number of blocks of a DiT, if not the named size's.
        pre_depth: number of explicit blocks of an FPDM before the implicit layer (1 if not given).
        post_depth: number of explicit blocks of an FPDM after the implicit layer (1 if not given).
        class_dropout: share of conditions (labels or vectors of attributes) replaced with the null one in training; 0
            for labels of one class.
        pre_post_timestep_conditioning: condition an FPDM's explicit blocks on timestep + label, not on the label only.
        implicit_depth: number of blocks in an FPDM's implicit layer (1 if not given, the paper's).
        injection: how the pre blocks' output enters every update of an FPDM, one of {", ".join(INJECTIONS)}
            (fpdm.injections explains them; mlp if not given, the paper's).
        loop_embedding: number of learned vectors, of which update i of an FPDM adds number i to its conditioning; later
            updates keep the last one (0 if not given, for none).
        reuse: whether sampling from this FPDM starts each solve from the previous timestep's solution unless told
            otherwise (if not given, true for the injection mlp, the paper's, and false for the others).
        early_head: give the exit after so many block passes a final layer of its own (0 if not given, for none). Exits
            of an FPDM are after its pre blocks, after blocks of the first update, and after whole updates.
        qk_norm: normalise the queries and keys of each attention head (false if not given; fpdm.block_options explains
            this and the next four, for which DiT's and the paper's choice is the default).
        norm: norm in the blocks and before the output, one of {", ".join(NORMS)} (layer if not given).
        mlp: MLP of the blocks, one of {", ".join(MLPS)} (gelu if not given).
        positions: positions of the tokens, one of {", ".join(POSITIONS)} (sincos if not given).
        exclude_own_value: attention gives each token nothing along its own value (false if not given).
        conditioning: what the network is conditioned on, one of {", ".join(CONDITIONINGS)}; attributes must be in the
            latents (encode_latents.py --attributes).
    """

    name: str = "FPDM-XL/2"
    hidden_size: int | None = None
    num_heads: int | None = None
    depth: int | None = None
    pre_depth: int | None = None
    post_depth: int | None = None
    class_dropout: float = 0.1
    pre_post_timestep_conditioning: bool | None = None
    implicit_depth: int | None = None
    injection: str | None = None
    loop_embedding: int | None = None
    reuse: bool | None = None
    early_head: int | None = None
    qk_norm: bool | None = None
    norm: str | None = None
    mlp: str | None = None
    positions: str | None = None
    exclude_own_value: bool | None = None
    conditioning: str = "class"

    def __post_init__(self):
        check_range(1, limits.WIDTH, **{"model.hidden_size": self.hidden_size, "model.num_heads": self.num_heads})
        for name in ("depth", "pre_depth", "post_depth", "loop_embedding", "early_head"):
            check_range(0, limits.DEPTH, **{f"model.{name}": getattr(self, name)})
        check_range(1, limits.DEPTH, **{"model.implicit_depth": self.implicit_depth})
        choices = {"injection": INJECTIONS, "norm": NORMS, "mlp": MLPS, "positions": POSITIONS}
        choices["conditioning"] = CONDITIONINGS
        for name, known in choices.items():
            if getattr(self, name) is not None:
                check_choice(f"model.{name}", getattr(self, name), known)
        check_range(0, 1, **{"model.class_dropout": self.class_dropout})

    def overrides(self) -> dict:
        """The settings given besides the name, as arguments for `build_model`."""
        return {name: value for name, value in vars(self).items() if name != "name" and value is not None}


@dataclass
class DiffusionConfig:
    __doc__ = f"""The process from image to noise: the arguments of its class in fpdm.processes, which explains them.

    Args:
        process: discrete (timesteps with a noise schedule, the paper's) or flow (linear interpolant in continuous
            time, whose velocity the network predicts). A flow uses only time_scale and the settings of the draw.
        schedule: linear, scaled-linear or cosine.
        beta_start: first beta.
        beta_end: last beta, before the rescaling to zero terminal SNR.
        timesteps: number of timesteps.
        parametrisation: what the network predicts, v, eps or x0.
        zero_terminal_snr: make the last timestep pure noise; not with eps.
        learn_sigma: predict the variance as well; false in a flow, which has none.
        weighting: weighting of the squared error, one of {", ".join(WEIGHTINGS)} (fpdm.weightings explains them).
        min_snr_gamma: upper limit of the SNR in min-snr.
        time_scale: the network of a flow sees this times t, with t in 0..1.
        draw: how training draws timesteps: {", ".join(f"{name} ({draw.about})" for name, draw in DRAWS.items())}.
        draw_mean: mean of the draw's normal numbers.
        draw_deviation: standard deviation of the draw's normal numbers.
    """

    process: str = "discrete"
    schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    parametrisation: str = "v"
    zero_terminal_snr: bool = True
    learn_sigma: bool = True
    weighting: str = "v"
    min_snr_gamma: float = 5.0
    time_scale: float = 1000.0
    draw: str = "uniform"
    draw_mean: float = 0.0
    draw_deviation: float = 1.0

    def __post_init__(self):
        check_choice("diffusion.process", self.process, PROCESSES)
        used = signature(PROCESSES[self.process]).parameters
        self.learn_sigma = self.learn_sigma and "learn_sigma" in used
        check_range(2, limits.TIMESTEPS, **{"diffusion.timesteps": self.timesteps})
        check_positive(1, **{"diffusion.beta_start": self.beta_start, "diffusion.beta_end": self.beta_end})
        check_choice("diffusion.weighting", self.weighting, WEIGHTINGS)
        check_positive(limits.FACTOR, **{"diffusion.min_snr_gamma": self.min_snr_gamma})
        check_positive(limits.FACTOR, **{"diffusion.time_scale": self.time_scale})
        check_choice("diffusion.draw", self.draw, DRAWS)
        check_range(-limits.DRAW, limits.DRAW, **{"diffusion.draw_mean": self.draw_mean})
        check_positive(limits.DRAW, **{"diffusion.draw_deviation": self.draw_deviation})
        TimestepDraw(self.draw, self.draw_mean, self.draw_deviation).check()
        for name, value in vars(self).items():
            if name not in used and name not in ("process", "learn_sigma") and value != getattr(DiffusionConfig, name):
                raise ValueError(
                    f"diffusion.{name}={value} with diffusion.process={self.process}, which does not use it; leave it "
                    "out, or choose another process"
                )


@dataclass
class DataConfig:
    """Where the latents are, and what they must be; training on a different store is an error.

    Args:
        latents: the store that encode_latents.py or import_latents.py wrote.
        mirror: mirror images at random; the store must contain the mirror images.
        vae: the VAE of the latents: a folder, a Hub id or pixels; previews are decoded with it (null for the store's).
        shape: channels, height and width of a latent (null for the store's).
        scale: the VAE's scale factor (null for the store's).
        classes: number of classes, 1 for unconditional data (null for the store's).
    """

    latents: str = ""
    mirror: bool = True
    vae: str | None = None
    shape: list[int] | None = None
    scale: float | None = None
    classes: int | None = None

    def __post_init__(self):
        check_range(1, limits.CLASSES, **{"data.classes": self.classes})
        check_range(1, limits.LATENT, **{"data.shape": self.shape})
        check_positive(limits.FACTOR, **{"data.scale": self.scale})
        if self.shape is not None and len(self.shape) != 3:
            raise ValueError(f"data.shape={self.shape}: must be channels, height and width, as in [4, 32, 32]")


@dataclass
class RunConfig:
    """Output, precision and log of a run.

    Args:
        name: the run's folder is results/<number>-<name>; null for the model's name.
        results: folder for all runs.
        seed: seed of all random numbers.
        mixed_precision: no, bf16 or fp16.
        tf32: allow TF32 matrix products on GPUs that have them.
        gradient_checkpointing: keep only the input of each block and update, and recompute the rest in the
            backward pass: less memory, about a third more time.
        compile: compile blocks and the implicit layer's update with torch.compile.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_last: how many of the newest checkpoints to keep (null for all).
        keep_every: with keep_last, also keep checkpoints at multiples of this many steps (null for none).
        preview_every: steps between grids of samples from the averaged weights; 0 for none.
        validate_every: steps between validations of the averaged weights, and one at the end; 0 for none. The section
            validation says what is measured.
        keep_best: also write and keep the checkpoint with the best validation, linked as checkpoints/best: the lowest
            Fréchet distance or, where none is measured, the lowest loss.
        tracker: none, tensorboard or wandb, in addition to log.jsonl.
    """

    name: str | None = None
    results: str = "results"
    seed: int = 0
    mixed_precision: str = "no"
    tf32: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every: int = 100
    checkpoint_every: int = 50_000
    keep_last: int | None = None
    keep_every: int | None = None
    preview_every: int = 0
    validate_every: int = 0
    keep_best: bool = False
    tracker: str = "none"

    def __post_init__(self):
        check_choice("run.mixed_precision", self.mixed_precision, PRECISIONS)
        check_choice("run.tracker", self.tracker, TRACKERS)
        for name in ("log_every", "checkpoint_every", "keep_last", "keep_every"):
            check_range(1, limits.STEPS, **{f"run.{name}": getattr(self, name)})
        for name in ("preview_every", "validate_every"):
            check_range(0, limits.STEPS, **{f"run.{name}": getattr(self, name)})
        check_range(0, limits.SEED, **{"run.seed": self.seed})
        if (self.keep_every or 0) % self.checkpoint_every:
            raise ValueError(
                f"run.keep_every={self.keep_every}: not a multiple of run.checkpoint_every={self.checkpoint_every}, "
                "so most of these steps have no checkpoint"
            )
        if self.keep_every is not None and self.keep_last is None:
            raise ValueError(f"run.keep_every={self.keep_every} without run.keep_last: all checkpoints are kept anyway")


@dataclass
class ExperimentConfig:
    """One training experiment: the content of a file in configs/.

    Args:
        model: the network.
        diffusion: the diffusion process.
        sjfb: how the implicit layer is trained.
        data: the training data.
        optim: the optimizer and the length of training.
        run: output, precision and log.
        validation: what is measured on held-out data while training.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sjfb: SJFBConfig = field(default_factory=SJFBConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self):
        measured = self.validation.latents is not None or self.validation.reference is not None
        if self.run.validate_every and not measured:
            raise ValueError(
                f"run.validate_every={self.run.validate_every}: there is nothing to measure; set validation.latents "
                "(held-out latents), validation.reference (real images), or both"
            )
        if self.run.keep_best and not self.run.validate_every:
            raise ValueError("run.keep_best=true without run.validate_every: nothing says which is the best; set both")
