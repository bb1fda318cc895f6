"""Reference files: statistics computed once, ours or ADM's, in place of a set of images.

An npz with `mu` and `sigma` of the pool features and, for Inception, `mu_s` and `sigma_s` of the spatial features, as
in ADM's files. Our files also have `features` of single images and `facts` (JSON); ADM's have images, `arr_0`.
"""

import json
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from fpdm.damage import damaged
from fpdm.evaluation.extraction import Gathered
from fpdm.evaluation.metrics import Statistics
from fpdm.files import make_folder, write_arrays
from fpdm.records import check_fields, shown

UNKNOWN_COUNT = -1  # ADM's files do not have the number of images


def _damaged(source: str) -> AbstractContextManager[None]:
    return damaged(source, f"reference {source}: damaged", "make it again")


def is_reference(source: str) -> bool:
    """Whether `source` is a reference file, not a set of images."""
    if Path(source).suffix != ".npz" or not zipfile.is_zipfile(source):
        return False
    with _damaged(source), zipfile.ZipFile(source) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def has_images(source: str) -> bool:
    """Whether a reference file also has images, as ADM's files do."""
    with _damaged(source), zipfile.ZipFile(source) as archive:
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


def _check(source: str, arrays: dict[str, np.ndarray], facts: object) -> None:
    """ValueError for arrays and facts that no reference file has."""
    if not isinstance(facts, dict):
        raise ValueError(f"reference {source}: facts={shown(facts)}: expected an object; make it again")
    check_fields(f"reference {source}: facts", facts, {"images": int, "extractor": str}, ["extractor"])
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean not in arrays and mean == "mu_s":
            continue
        length = arrays[mean].shape[0] if arrays[mean].ndim == 1 else 0
        floats = all(arrays[name].dtype.kind == "f" for name in (mean, covariance) if name in arrays)
        if not length or covariance not in arrays or arrays[covariance].shape != (length, length) or not floats:
            raise ValueError(
                f"reference {source}: {mean} and {covariance} must be numbers (F,) and (F, F); make it again"
            )
    kept = arrays.get("features")
    if kept is not None and (kept.ndim != 2 or kept.dtype.kind != "f" or kept.shape[1] != len(arrays["mu"])):
        raise ValueError(
            f"reference {source}: features {kept.dtype} {kept.shape}: must be numbers (K, F); make it again"
        )


def load_reference(source: str, expected: dict) -> Gathered:
    """Read a reference file. expected: facts it must have; ValueError if the file was made with others.

    ADM's files have no facts; they are taken to be for Inception, at any resolution.
    """
    with _damaged(source):
        with np.load(source) as file:
            arrays = {name: file[name] for name in file.files if name != "arr_0"}
        facts = json.loads(str(arrays["facts"])) if "facts" in arrays else {"extractor": "inception"}
    _check(source, arrays, facts)
    for name, value in expected.items():
        if facts.get(name, value) != value:
            raise ValueError(f"reference {source}: made with {name} {facts[name]}, this is for {value}; make another")
    count = facts.get("images", UNKNOWN_COUNT)
    spatial = Statistics(arrays["mu_s"], arrays["sigma_s"], count) if "mu_s" in arrays else None
    kept = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    return Gathered(Statistics(arrays["mu"], arrays["sigma"], count), spatial, None, kept)
