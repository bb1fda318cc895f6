"""How one image is read, from an array, a file or a zip, and a file in a zip."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fpdm.config import limits


class ArrayReader:
    """Grey images from one array (N, h, w) uint8."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __call__(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


class FileReader:
    """Images from files."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __call__(self, i: int) -> Image.Image:
        with Image.open(self.paths[i]) as image:
            image.load()
            return image


class ZipReader:
    """Images from a zip, opened once per process: a handle shared by several would share its position."""

    def __init__(self, path: Path, names: list[str]):
        self.path, self.names, self._opened = path, names, {}

    def __call__(self, i: int) -> Image.Image:
        archive = self._opened.get(os.getpid()) or self._opened.setdefault(os.getpid(), zipfile.ZipFile(self.path))
        image = Image.open(io.BytesIO(member(archive, self.names[i])))
        image.load()
        return image

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": {}}


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in a zip; ValueError before it is unpacked if it is larger than any image."""
    size = archive.getinfo(name).file_size
    if size > limits.FILE_IN_ZIP:
        raise ValueError(f"{name} unpacks to {size:,d} bytes; at most {limits.FILE_IN_ZIP:,d}")
    return archive.read(name)
