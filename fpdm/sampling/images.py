"""Image files: PNGs named by index, a grid, and ADM's npz."""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fpdm.files import make_folder, partial_of, replaced, write_atomically
from fpdm.records import read_fields
from fpdm.sampling.settings import SamplingConfig

GRID = "grid.png"
NPZ = "samples.npz"
RECIPE = "samples.json"
# Of settings that are newer than a folder.
DEFAULTS = {f"sampling.{field.name}": field.default for field in fields(SamplingConfig)}
DERIVED = ("plan", "block_passes", "flops_per_image")


def png_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def encode_png(pixels: Tensor) -> bytes:
    """uint8 (3, H, W) -> the content of a PNG file."""
    content = io.BytesIO()  # level 1 is several times as fast (docs/performance.md)
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(content, format="PNG", compress_level=1)
    return content.getvalue()


def save_png(pixels: Tensor, path: Path) -> None:
    """uint8 (3, H, W) -> PNG. A file with this name is always complete."""
    with replaced(path, sync=False) as partial:
        partial.write_bytes(encode_png(pixels))


def is_complete(path: Path) -> bool:
    """Whether a PNG exists and is complete."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError):
        return False


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """uint8 (B, 3, H, W) -> one picture, roughly square unless `columns` is given."""
    columns = columns or max(1, round(len(images) ** 0.5))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_png(make_grid(images.cpu(), nrow=columns, padding=2, pad_value=255), Path(path))


def load_pngs(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """uint8 (B, H, W, 3) of images by index."""
    return np.stack([np.array(Image.open(png_path(folder, i)).convert("RGB")) for i in indices])


def save_npz(folder: Path, count: int) -> None:
    """Write samples.npz: `arr_0` uint8 (count, H, W, 3), as ADM's evaluator reads it. Only one image is in memory."""
    first = load_pngs(folder, [0])[0]
    with (
        replaced(folder / NPZ, sync=False) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as out,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
        np.lib.format.write_array_header_1_0(out, header)
        for index in range(count):
            out.write(load_pngs(folder, [index])[0].tobytes())


@dataclass
class Recipe:
    """samples.json, as `fpdm.sampling.folder.make_recipe` makes it; older ones lack some of its entries."""

    num_samples: int
    sampling: dict = field(default_factory=dict)
    checkpoint: str | None = None
    weights: str | None = None
    precision: str | None = None
    codec: str | None = None
    plan: list | None = None
    block_passes: int | None = None
    flops_per_image: float | None = None
    tf32: bool | None = None


def read_recipe(path: Path) -> dict:
    """The recipe in a file; ValueError for a damaged one."""
    found = read_fields(path, Recipe)
    if found["num_samples"] < 1:
        raise ValueError(f"{path}: num_samples={found['num_samples']}: at least 1; restore the file")
    return found


def open_folder(folder: Path, recipe: dict) -> None:
    """Create a folder for samples of this recipe, or continue one; ValueError if it has another recipe.

    The number of images may be larger than before: a folder can be extended.
    """
    path = folder / RECIPE
    if path.exists():
        now = _flat(recipe)
        before = {name: value for name, value in DEFAULTS.items() if name in now} | _flat(read_recipe(path))
        if before["num_samples"] > now["num_samples"]:
            raise ValueError(
                f"num_samples={now['num_samples']}: {folder} already has {before['num_samples']} images of this "
                "recipe; ask for at least as many, or choose another folder"
            )
        names = [n for n in sorted({*before, *now} - {"num_samples"}) if before.get(n) != now.get(n)]
        names = [n for n in names if n not in DERIVED] or names  # derived values add nothing to the message
        if names:
            changed = "; ".join(f"{n} was {before.get(n)}, is {now.get(n)}" for n in names)
            raise ValueError(f"{folder} holds samples of another recipe ({changed}); choose another folder")
    elif folder.is_dir() and any(other != partial_of(path) for other in folder.iterdir()):
        raise ValueError(f"{folder} holds files but no {RECIPE}; choose another folder, or an empty one")
    make_folder(folder)
    write_atomically(path, json.dumps(recipe, indent=1))


def _flat(values: dict, prefix: str = "") -> dict:
    """{"sampling": {"seed": 0}} -> {"sampling.seed": 0}."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def recipe_id(recipe: dict) -> str:
    """Eight hex digits that identify a recipe, independent of its number of images."""
    counted = {name: value for name, value in recipe.items() if name != "num_samples"}
    return hashlib.blake2b(json.dumps(counted, sort_keys=True).encode(), digest_size=4).hexdigest()
