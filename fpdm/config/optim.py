"""The optimizer, the averages of the weights, and the length of training."""

from dataclasses import dataclass, field

from fpdm.config import limits
from fpdm.config.checks import check_choice, check_decay, check_positive, check_range
from fpdm.lr_schedules import LR_SCHEDULES

OPTIMIZERS = ("adamw", "muon")
DECAYED = ("all", "matrices")
MUON_LR = 0.02  # its author's
LARGEST_STD = 0.28  # of a power-function profile: that of the flat one, exponent 0, is 1 / sqrt(12)


@dataclass
class OptimConfig:
    __doc__ = f"""The optimizer and the length of training.

    Args:
        steps: optimizer steps.
        batch_size: samples per optimizer step, over all processes.
        micro_batch_size: samples that one process takes at a time (null for its whole share of the batch);
            gradients are accumulated over its share.
        lr: learning rate after warm-up.
        lr_schedule: how the rate changes after warm-up, until `steps`: {", ".join(LR_SCHEDULES)}.
        warmup: steps over which the rate rises to lr.
        cooldown: the last steps, over which a constant rate falls to 0. It may start at any checkpoint of a longer run:
            train.py --fork CHECKPOINT with `steps` = the checkpoint's step + cooldown.
        weight_decay: each step multiplies weights by 1 - learning rate x weight_decay.
        clip_norm: gradient norm above which gradients are scaled down; null for no clipping.
        ema_decay: decay of the averaged weights (EMA), which are used for sampling.
        max_skipped: number of non-finite steps in a row after which training stops.
        betas: decays of AdamW's two moments.
        eps: what AdamW adds to the square root of the second moment.
        decay: what weight_decay applies to: all, or matrices (not biases, norms, embeddings and positions).
        mup_base_width: width for which lr was chosen. AdamW's rate of every matrix whose input grows with the width is
            multiplied by mup_base_width / width, as muP does. Null for one rate for all widths.
        optimizer: adamw; or muon for the blocks' matrices and AdamW for the rest, which needs torch 2.9.
        muon_lr: learning rate of muon's matrices after warm-up ({MUON_LR} if not given). It follows the same schedule.
        ema_extra: decays of further averages, ema-DECAY in a checkpoint, from which sample.py --weights can sample.
        ema_profiles: lengths of EDM2's power-function averages, ema-power-LENGTH in a checkpoint: standard deviation of
            the averaged steps as a share of training, as in [0.05, 0.1].
        ema_snapshot_every: steps between snapshots of these averages, from which ema.py makes an average of any length;
            0 for none.
    """

    steps: int = 400_000
    batch_size: int = 256
    micro_batch_size: int | None = None
    lr: float = 1e-4
    lr_schedule: str = "constant"
    warmup: int = 0
    cooldown: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    ema_decay: float = 0.9999
    max_skipped: int = 10
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    decay: str = "all"
    mup_base_width: int | None = None
    optimizer: str = "adamw"
    muon_lr: float | None = None
    ema_extra: list[float] = field(default_factory=list)
    ema_profiles: list[float] = field(default_factory=list)
    ema_snapshot_every: int = 0

    def __post_init__(self):
        check_choice("optim.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_range(1, limits.STEPS, **{"optim.steps": self.steps, "optim.max_skipped": self.max_skipped})
        for name in ("batch_size", "micro_batch_size"):
            check_range(1, limits.BATCH, **{f"optim.{name}": getattr(self, name)})
        check_range(0, limits.STEPS, **{"optim.warmup": self.warmup, "optim.cooldown": self.cooldown})
        if self.cooldown > self.steps:
            raise ValueError(f"optim.cooldown={self.cooldown}: more than optim.steps={self.steps}")
        if self.cooldown and self.lr_schedule != "constant":
            raise ValueError(
                f"optim.cooldown={self.cooldown} with optim.lr_schedule={self.lr_schedule}, which falls anyway; "
                "use constant, or no cooldown"
            )
        check_range(0, limits.FACTOR, **{"optim.weight_decay": self.weight_decay})
        check_positive(limits.FACTOR, **{"optim.lr": self.lr})
        if self.clip_norm is not None and not 0 < self.clip_norm <= limits.FACTOR:
            raise ValueError(
                f"optim.clip_norm={self.clip_norm}: must be positive, at most {limits.FACTOR:,}; null for no clipping"
            )
        self._check_optimizer()
        self._check_averages()

    def _check_optimizer(self) -> None:
        check_choice("optim.optimizer", self.optimizer, OPTIMIZERS)
        check_choice("optim.decay", self.decay, DECAYED)
        check_positive(limits.FACTOR, **{"optim.eps": self.eps, "optim.muon_lr": self.muon_lr})
        check_range(1, limits.WIDTH, **{"optim.mup_base_width": self.mup_base_width})
        check_decay(**{"optim.betas": self.betas})
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas={self.betas}: two decays, as in [0.9, 0.999]")
        if self.muon_lr is not None and self.optimizer != "muon":
            raise ValueError(
                f"optim.muon_lr={self.muon_lr} with optim.optimizer={self.optimizer}, which does not use it; "
                "set optim.optimizer to muon, or leave it out"
            )

    def _check_averages(self) -> None:
        check_decay(**{"optim.ema_decay": self.ema_decay, "optim.ema_extra": self.ema_extra})
        check_positive(LARGEST_STD, **{"optim.ema_profiles": self.ema_profiles})
        for name in ("ema_extra", "ema_profiles"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"optim.{name}={getattr(self, name)}: each number once")
        check_range(0, limits.STEPS, **{"optim.ema_snapshot_every": self.ema_snapshot_every})
        if self.ema_snapshot_every and not self.ema_profiles:
            raise ValueError(
                f"optim.ema_snapshot_every={self.ema_snapshot_every}: there is nothing to keep; set "
                "optim.ema_profiles, as in [0.05, 0.1], or leave it out"
            )
