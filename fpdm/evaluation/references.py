"""References as files: statistics made once, ours or ADM's, in place of a set of images.

An npz with `mu` and `sigma` of the pool features, `mu_s` and `sigma_s` of the spatial ones where there are any, as in
ADM's files. Ours has `features` of some images and `facts` (JSON) beside; ADM's has images, `arr_0`.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import Statistics
from fpdm.files import write_arrays

UNKNOWN_COUNT = -1  # ADM's files do not say how many images they are of


def is_reference(source: str) -> bool:
    """Whether this is such a file, not a set of images."""
    if Path(source).suffix != ".npz" or not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def has_images(source: str) -> bool:
    """Whether the file holds images as well, as ADM's do."""
    with zipfile.ZipFile(source) as archive:
        return "arr_0.npy" in archive.namelist()


def save_reference(path: Path, gathered: Gathered, facts: dict) -> None:
    """facts: extractor (its name), key (of its weights), resolution, source; checked when the file is used."""
    arrays = {"mu": gathered.pool.mean, "sigma": gathered.pool.covariance, "features": gathered.kept.numpy()}
    if gathered.spatial is not None:
        arrays |= {"mu_s": gathered.spatial.mean, "sigma_s": gathered.spatial.covariance}
    arrays["facts"] = np.array(json.dumps(facts | {"images": gathered.pool.count}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)


def load_reference(source: str, expected: dict) -> Gathered:
    """expected: extractor, key and resolution of what it is compared with; ValueError where the file is of others.

    ADM's files, which say nothing of themselves, are taken to be of Inception at any resolution.
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
