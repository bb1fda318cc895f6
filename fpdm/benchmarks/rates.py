"""Rates of data input and output: reading latents, encoding and decoding images, writing PNGs."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpdm.benchmarks.timing import Bench, Question, alternate, dtype_of
from fpdm.data.codec import Codec, VAECodec
from fpdm.data.latents import LatentStore
from fpdm.data.synthetic import write_random_store
from fpdm.evaluation.tables import markdown_table
from fpdm.sampling.images import png_path, save_png

OURS, FIRST = "ours", "channels_first"


def rates(
    records: int,
    latent: tuple[int, int, int],
    batches: tuple[int, ...],
    image_batch: int,
    resolution: int,
    precision: str,
    codec: Codec,
) -> Question:
    """records: size of the latent store. batches: batch sizes of reading latents. image_batch: of R x R images.

    precision: of the VAE; float32 is measured as well.
    """
    images = {"batch": image_batch, "resolution": resolution}
    cases = [{"what": "reading latents", "batch": b, "latent": list(latent), "records": records} for b in batches]
    if isinstance(codec, VAECodec):
        forms = dict.fromkeys(("no", precision))
        cases += [{"what": what, **images, "vae": form} for what, form in product(("encoding", "decoding"), forms)]
    cases.append({"what": "writing PNG", **images})
    return Question("Data in and out", cases, lambda bench, **case: measure(bench, codec, **case), table)


def measure(
    bench: Bench,
    codec: Codec,
    what: str,
    batch: int,
    resolution: int = 0,
    records: int = 0,
    latent: list[int] | None = None,
    vae: str = "no",
) -> dict:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as writer:
        if what == "reading latents":
            write_random_store(folder, records, latent)
            store, draw = LatentStore(folder), np.random.default_rng(0)
            works = {OURS: lambda: store.read(draw.integers(0, len(store), batch), draw.random(batch) < 0.5)}
        elif what == "writing PNG":
            pixels = torch.randint(0, 256, (batch, 3, resolution, resolution), dtype=torch.uint8)
            # Plain noise compresses badly.
            smooth = torch.nn.functional.avg_pool2d(pixels.float(), 9, 1, 4).to(torch.uint8)

            def write():
                list(writer.map(lambda i: save_png(smooth[i], png_path(Path(folder), i)), range(batch)))

            works = {OURS: write}
        else:
            works = {
                name: coding(bench, form, what, batch, resolution)
                for name, form in layouts(codec, dtype_of(vae)).items()
            }
        times = alternate(bench, works)
    ours = times[OURS]
    row = {"per_s": batch / ours.median, "least_per_s": batch / ours.most, "most_per_s": batch / ours.least}
    return row | {f"{name}_per_s": batch / seconds.median for name, seconds in times.items() if name != OURS}


def layouts(codec: VAECodec, dtype: torch.dtype) -> dict[str, VAECodec]:
    """The VAE in this precision with channels last in memory, as it is used, and with channels first."""
    copies = [VAECodec(torch.nn.Module.to(deepcopy(codec.vae), dtype), codec.source) for _ in range(2)]
    copies[1].vae.to(memory_format=torch.contiguous_format)
    return {OURS: copies[0], FIRST: copies[1]}


def coding(bench: Bench, codec: VAECodec, what: str, batch: int, resolution: int) -> Callable[[], Any]:
    """Encoding or decoding of one batch."""
    side = resolution // codec.downsampling
    images = torch.rand(batch, 3, resolution, resolution, device=bench.device) * 2 - 1
    latents = torch.randn(batch, codec.channels, side, side, device=bench.device)

    def work():
        with torch.inference_mode():
            return codec.encode(images) if what == "encoding" else codec.decode(latents)

    return work


def table(rows: list[dict]) -> str:
    def size(row: dict) -> str:
        if row["what"] == "reading latents":
            return f"{row['records']:,d} of {'x'.join(map(str, row['latent']))}"
        return f"{row['resolution']}x{row['resolution']}"

    body = [
        [row["what"], str(dtype_of(row["vae"])).removeprefix("torch.") if "vae" in row else "", size(row),
         str(row["batch"]), f"{row['per_s']:,.4g}", f"{row['least_per_s']:,.4g} to {row['most_per_s']:,.4g}",
         f"{row[f'{FIRST}_per_s']:,.4g}" if f"{FIRST}_per_s" in row else ""] for row in rows
    ]  # fmt: skip
    return markdown_table(["", "VAE", "size", "batch", "per second", "range", "with channels first"], body, 3)
