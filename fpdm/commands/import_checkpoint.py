"""Import a published DiT, FPDM or SiT checkpoint (.pt) as a folder that scripts/sample.py can sample from."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fpdm import cli
from fpdm.config import DiffusionConfig, check_choice, check_range, limits
from fpdm.export import export_model
from fpdm.models import Denoiser, FixedPointDiT
from fpdm.models.convert import EMA_WEIGHTS, MODEL_WEIGHTS, from_published, infer_config, read_published
from fpdm.models.sit import from_sit
from fpdm.models.sizes import class_of
from fpdm.processes import Diffusion, Flow

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is imported, and to where. The architecture is read from the weights.

    Args:
        source: the .pt file.
        out: the new folder.
        weights: ema or model, if the file has both.
        vae: the VAE that the model was trained with, a folder or a Hub id.
        process: discrete for a DiT or an FPDM, flow for a SiT with the linear path, whose weights have the same names.
        parametrisation: what a DiT or an FPDM predicts (null for v with an FPDM, eps with a DiT, as published).
        zero_terminal_snr: whether the last timestep of a DiT or an FPDM is pure noise (null for yes with an FPDM, no
            with a DiT).
        class_names: file with one class name per line (null for "0", "1", ...).
        num_heads: number of attention heads, for widths other than the named sizes'.
        pre_post_timestep_conditioning: whether an FPDM's explicit blocks see the timestep.
    """

    source: str = ""
    out: str = ""
    weights: str = EMA_WEIGHTS
    vae: str = "stabilityai/sd-vae-ft-ema"
    process: str = "discrete"
    parametrisation: str | None = None
    zero_terminal_snr: bool | None = None
    class_names: str | None = None
    num_heads: int | None = None
    pre_post_timestep_conditioning: bool = False

    def __post_init__(self):
        check_range(1, limits.WIDTH, num_heads=self.num_heads)
        for name in ("source", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; see --help")
        check_choice("weights", self.weights, (EMA_WEIGHTS, MODEL_WEIGHTS))
        check_choice("process", self.process, PUBLISHED)
        for name in PUBLISHED[self.process].unused:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} with process={self.process}, which does not use it; leave it out, "
                    "or choose another process"
                )


class Published(NamedTuple):
    """How checkpoints of a process were published. make: state dict and the network's settings -> network. diffusion:
    the command's settings and those of the network -> the process. unused: settings that it has no use for. iterative:
    whether there are FPDMs among them."""

    make: Callable[..., Denoiser]
    diffusion: Callable[[Settings, dict], DiffusionConfig]
    unused: tuple[str, ...] = ()
    iterative: bool = True


def _discrete(settings: Settings, config: dict) -> DiffusionConfig:
    """That of the paper for an FPDM, and of DiT's paper for a DiT, unless told otherwise."""
    iterative = class_of(config) is FixedPointDiT
    return DiffusionConfig(
        parametrisation=settings.parametrisation or ("v" if iterative else "eps"),
        zero_terminal_snr=iterative if settings.zero_terminal_snr is None else settings.zero_terminal_snr,
        weighting="v" if iterative else "eps",
        learn_sigma=config["learn_sigma"],
    )


def _flow(settings: Settings, config: dict) -> DiffusionConfig:
    """That of SiT."""
    return DiffusionConfig(process=Flow.kind, time_scale=1.0)


PUBLISHED = {
    Diffusion.kind: Published(from_published, _discrete),
    Flow.kind: Published(from_sit, _flow, ("parametrisation", "zero_terminal_snr"), iterative=False),
}


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    state = read_published(settings.source, settings.weights)
    try:
        model, config = _made(settings, state)
    except ValueError as error:
        raise ValueError(f"source {settings.source}: {error}") from error
    names = [str(c) for c in range(model.num_classes)]
    if settings.class_names:
        names = Path(settings.class_names).read_text().splitlines()
        if len(names) != model.num_classes:
            raise ValueError(f"class_names={settings.class_names}: {len(names)} names for {model.num_classes} classes")
    facts = {
        "diffusion": asdict(PUBLISHED[settings.process].diffusion(settings, config)),
        "codec": settings.vae,
        "codec_fingerprint": None,
        "class_names": names,
        "latents": None,
    }
    export_model(settings.out, model, facts, None, {"imported from": Path(settings.source).name})
    logger.info(f"{settings.source} ({settings.weights} weights, {model.family}) -> {settings.out}: {config}")


def _made(settings: Settings, state: dict[str, Tensor]) -> tuple[Denoiser, dict]:
    """The network of a published state dict, and its settings."""
    published, config = PUBLISHED[settings.process], infer_config(state, settings.num_heads)
    if class_of(config) is FixedPointDiT:
        if not published.iterative:
            raise ValueError(
                f"process={settings.process}: this is an FPDM, which was published for discrete timesteps only"
            )
        config["pre_post_timestep_conditioning"] = settings.pre_post_timestep_conditioning
    return published.make(state, **config), config


def run() -> None:
    """The command fpdm-import-checkpoint: main(), with one-line error messages."""
    cli.run(main)
