"""Imports everything that the commands import, so that no fork has to."""

import gc
import importlib
import pkgutil

from fpdm import commands

LIBRARIES = ("torch._dynamo", "diffusers.models.autoencoders.autoencoder_kl", "scipy.linalg", "sklearn.datasets",
             "torch.distributed", "torch.utils.data", "PIL.PngImagePlugin", "accelerate", "matplotlib.figure",
             "matplotlib.backends.backend_agg", "torch_fidelity.feature_extractor_inceptionv3")  # fmt: skip


def preload() -> None:
    """Import them. Nothing is computed: the threads of a computation would be missing in a fork."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.iter_modules(commands.__path__, "fpdm.commands."):
        importlib.import_module(module.name)
    gc.collect()
