"""Pickles that run code, in all files that could hold one. Read with weights_only, they must run none."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from random import Random

import numpy as np

CANARY = "pwned"  # the file that a pickle that is run leaves in the folder of the round


class Runs:
    """When this is unpickled, a file is made."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def canary(path: Path) -> Path:
    """Where a pickle in this file leaves its mark: in the folder of the round."""
    above = next((parent for parent in path.parents if parent.parent.name == "rounds"), path.parent)
    return above / CANARY


def plain_pickle(path: Path, draw: Random) -> str:
    """As torch wrote it long ago. A reader that maps files refuses it before the pickle is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_pickle(path, draw))
    return "a plain pickle"


def torch_archive(path: Path, draw: Random) -> str:
    """In the archive that torch writes, so that readers that map files get to the pickle too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", _pickle(path, draw)), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    return "a pickle in torch's archive"


def hostile_torch(path: Path, draw: Random) -> str:
    """One or the other."""
    return draw.choice((plain_pickle, torch_archive))(path, draw)


def hostile_npy(path: Path, draw: Random) -> str:
    """An array of objects, which numpy keeps as a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, np.array([Runs(canary(path))], object), allow_pickle=True)
    return "an npy of objects"


def hostile_npz(path: Path, draw: Random) -> str:
    """The same in an npz, in place of one of the arrays of the file that is there, or of `arr_0`."""
    names = ["arr_0"]
    if path.exists():
        with np.load(path) as file:
            names = file.files
    name = draw.choice(names)
    single = path.with_name("single.npy")
    hostile_npy(single, draw)
    with zipfile.ZipFile(path.with_name("new.npz"), "w") as archive:
        for other in names:
            if other != name:
                with np.load(path) as file:
                    content = io.BytesIO()
                    np.save(content, file[other])
                archive.writestr(f"{other}.npy", content.getvalue())
        archive.write(single, f"{name}.npy")
    single.unlink()
    shutil.move(path.with_name("new.npz"), path)
    return f"an npz with objects in {name}"


def _pickle(path: Path, draw: Random) -> bytes:
    return pickle.dumps({"model": Runs(canary(path))}, protocol=draw.choice((0, 2, 4)))
