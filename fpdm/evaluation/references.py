"""Reference files: statistics computed once, ours or ADM's, in place of a set of images.

An npz with `mu` and `sigma` of the pool features and, for Inception, `mu_s` and `sigma_s` of the spatial features, as
in ADM's files. Our files also have `features` of single images and `facts` (JSON); ADM's have images, `arr_0`.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import Statistics
from fpdm.files import make_folder, write_arrays

UNKNOWN_COUNT = -1  # ADM's files do not have the number of images


def is_reference(source: str) -> bool:
    """Whether `source` is a reference file, not a set of images."""
    if Path(source).suffix != ".npz" or not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def has_images(source: str) -> bool:
    """Whether a reference file also has images, as ADM's files do."""
    with zipfile.ZipFile(source) as archive:
        return "arr_0.npy" in archive.namelist()


def save_reference(path: Path, gathered: Gathered, facts: dict) -> None:
    """Write a reference file. facts: extractor (its name), key (of its weights), resolution, tf32, source.

    `load_reference` checks the facts.
    """
    arrays = {"mu": gathered.pool.mean, "sigma": gathered.pool.covariance, "features": gathered.kept.numpy()}
    if gathered.spatial is not None:
        arrays |= {"mu_s": gathered.spatial.mean, "sigma_s": gathered.spatial.covariance}
    arrays["facts"] = np.array(json.dumps(facts | {"images": gathered.pool.count}))
    make_folder(path.parent)
    write_arrays(path, arrays)


def load_reference(source: str, expected: dict) -> Gathered:
    """Read a reference file. expected: facts it must have; ValueError if the file was made with others.

    ADM's files have no facts; they are taken to be for Inception, at any resolution.
    """
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files if name != "arr_0"}
    facts = json.loads(str(arrays["facts"])) if "facts" in arrays else {"extractor": "inception"}
    for name, value in expected.items():
        if facts.get(name, value) != value:
            raise ValueError(f"reference {source}: made with {name} {facts[name]}, this is for {value}; make another")
    count = facts.get("images", UNKNOWN_COUNT)
    spatial = Statistics(arrays["mu_s"], arrays["sigma_s"], count) if "mu_s" in arrays else None
    kept = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    return Gathered(Statistics(arrays["mu"], arrays["sigma"], count), spatial, None, kept)
