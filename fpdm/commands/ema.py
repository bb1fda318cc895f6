"""Make averaged weights of any length from a run's snapshots, after training (EDM2's post-hoc EMA)."""

import logging
from dataclasses import dataclass

from fpdm import cli
from fpdm.commands.export import history
from fpdm.config import check_positive, check_range, limits
from fpdm.config.optim import LARGEST_STD
from fpdm.export import export_model
from fpdm.loading import load_checkpoint
from fpdm.training.profiles import Profile
from fpdm.training.snapshots import load_average, snapshot_steps

logger = logging.getLogger("fpdm")
FAR = 0.05  # relative error of a profile, from which on a warning is given


@dataclass
class Settings:
    """Which average is made, and where it is written.

    Args:
        ckpt: a run's folder, or one of its checkpoints.
        out: the new folder, which sample.py and evaluate.py take like any exported model.
        std: length of the average: standard deviation of the averaged steps as a share of training, as in
            optim.ema_profiles.
        step: the step at which the average ends, one that has snapshots (null for the last).
    """

    ckpt: str = ""
    out: str = ""
    std: float = 0.1
    step: int | None = None

    def __post_init__(self):
        check_positive(LARGEST_STD, std=self.std)
        check_range(1, limits.STEPS, step=self.step)
        for name in ("ckpt", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; see --help")


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    model, facts, checkpoint = load_checkpoint(settings.ckpt)
    run = checkpoint.parent.parent
    if not (run / "config.yaml").is_file():
        raise ValueError(f"ckpt={settings.ckpt}: not a run, so it has no snapshots; give the folder of a training run")
    steps = snapshot_steps(run)
    if not steps:
        raise ValueError(
            f"ckpt={settings.ckpt}: {run} has no snapshots; train with optim.ema_profiles and optim.ema_snapshot_every"
        )
    wanted = Profile(settings.step or steps[-1], settings.std)
    error = load_average(model, run, wanted)
    told = {
        "weights": f"power-function average of relative standard deviation {wanted.std}",
        "training steps": f"{wanted.step:,d}",
    }
    export_model(settings.out, model, facts | {"weights": "ema"}, None, history(checkpoint, "ema") | told)
    logger.info(
        f"{run}: average of length {wanted.std} at step {wanted.step:,d}, from snapshots of "
        f"{sum(step <= wanted.step for step in steps)} steps, error of the profile {error:.2g} -> {settings.out}"
    )
    if error > FAR:
        logger.warning(
            f"warning: these snapshots make this profile only up to an error of {error:.0%}; choose a length nearer to "
            "those of optim.ema_profiles, or train with a smaller optim.ema_snapshot_every"
        )


def run() -> None:
    """The command fpdm-ema: main(), with one-line error messages."""
    cli.run(main)
