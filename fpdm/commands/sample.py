"""Sample images from a checkpoint: PNGs, a grid, and the npz of ADM's evaluator."""

from dataclasses import dataclass

from fpdm import cli
from fpdm.config import check_choice
from fpdm.loading import load_source
from fpdm.precision import PRECISIONS
from fpdm.sampling.folder import check_sizes, sample_to_folder
from fpdm.sampling.settings import SamplingConfig


@dataclass
class Settings(SamplingConfig):
    __doc__ = (
        SamplingConfig.__doc__
        + """    ckpt: a run's folder (uses its latest checkpoint), a checkpoint, or an exported folder or its Hub id.
        out: folder for the images; by default samples/<step>-<recipe> in the checkpoint's run, or in the working
            directory.
        num_samples: number of images; images that are already in the folder are kept.
        batch_size: images per batch and process.
        weights: ema, model, or another average of the checkpoint, such as ema-0.999.
        precision: precision of the network: no, bf16 or fp16.
        tf32: allow TF32 matrix products on GPUs that support them, for a float32 network and for the VAE.
        compile: compile blocks and the implicit layer's update with torch.compile; useful for many images.
        trace: number of images, from index 0, to record in the folder's trace/: the residual of every update, and the
            image predicted at each timestep.
        vae: the codec's new place, if it has moved since training.
    """
    )

    ckpt: str = ""
    out: str | None = None
    num_samples: int = 64
    batch_size: int = 64
    weights: str = "ema"
    precision: str = "no"
    tf32: bool = True
    compile: bool = False
    trace: int = 0
    vae: str | None = None

    def __post_init__(self):
        check_sizes(self.num_samples, self.batch_size, self.trace)
        check_choice("precision", self.precision, PRECISIONS)
        super().__post_init__()


def parser():
    return cli.make_parser(Settings, __doc__)


def main() -> None:
    settings = cli.parse(Settings, parser())
    if not settings.ckpt:
        raise ValueError("ckpt is not set; give a run's folder or one of its checkpoints")
    source = load_source(
        settings.ckpt,
        weights=settings.weights,
        vae=settings.vae,
        precision=settings.precision,
        compiled=settings.compile,
    )
    sampling = {name: getattr(settings, name) for name in SamplingConfig.__dataclass_fields__}
    sizes = {name: getattr(settings, name) for name in ("num_samples", "batch_size", "trace", "tf32")}
    sample_to_folder(source, settings.out, **sizes, **sampling)


def run() -> None:
    cli.run(main)
