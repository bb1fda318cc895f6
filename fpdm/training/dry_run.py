"""What a run would be, for --dry-run: its config, its network, the cost of a step, and its memory."""

import math
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from fpdm.config import ExperimentConfig
from fpdm.data.latents import MANIFEST, LatentStore
from fpdm.devices import process_state
from fpdm.models import forward_cost
from fpdm.processes import make_process
from fpdm.training.describe import GIB, describe_cost, describe_files, describe_memory, describe_share, model_table
from fpdm.training.fits import describe_fit
from fpdm.training.setup import build_network, check_solves, check_store, split_batch
from fpdm.training.start import Init, start_from


def device_gib() -> float | None:
    """Nominal memory in GiB of the GPU that this process would train on; None without a GPU.

    What the driver keeps of it is part of the reserve in fpdm.training.fits.
    """
    device = process_state().device
    return math.ceil(torch.cuda.get_device_properties(device).total_memory / GIB) if device.type == "cuda" else None


def describe_run(config: ExperimentConfig, processes: int, gpu_gib: float | None, init: Init | None = None) -> str:
    """Describe a run of this config; the store need not exist if data.shape and data.classes are given.

    processes: how many share a step. gpu_gib: memory of one GPU, to add whether a step fits; None to omit that.
    init: weights to start from, to add what the network takes of them.
    ValueError for settings that training would refuse.
    """
    shape, classes, manifest = config.data.shape, config.data.classes, None
    if (Path(config.data.latents) / MANIFEST).is_file():
        store = LatentStore(config.data.latents)
        check_store(config.data, store)
        manifest = store.manifest
        shape, classes = manifest.shape, len(manifest.class_names)
    elif shape is None or classes is None:
        raise ValueError(
            f"data.latents={config.data.latents!r}: no latent store there, so data.shape and data.classes must say "
            "what it will hold, as in --data.shape 4,32,32 --data.classes 1000"
        )
    make_process(asdict(config.diffusion))  # raises the errors that training would
    with torch.device("meta"):
        network = build_network(config, shape, classes, manifest)
    check_solves(config, network, split_batch(config.optim, 0, processes)[1])
    parts = [
        yaml.safe_dump(asdict(config), sort_keys=False),
        config.model.name,
        model_table(network),
        *([] if init is None else [start_from(init, network, config, manifest)]),
        describe_cost(config, network, forward_cost(network)),
        describe_files(config, network),
        describe_memory(config, network, processes),
        describe_share(config, processes),
    ]
    if gpu_gib is not None:
        parts.append(describe_fit(config, network, processes, gpu_gib))
    return "\n".join(parts)
