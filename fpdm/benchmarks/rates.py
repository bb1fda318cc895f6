"""Data in and out: latents read, images encoded and decoded, PNGs written."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import torch

from fpdm.benchmarks.timing import DTYPES, Bench, Question, alternate
from fpdm.data.codec import Codec, VAECodec
from fpdm.data.latents import LatentStore
from fpdm.data.synthetic import write_random_store
from fpdm.evaluation.tables import markdown_table
from fpdm.sampling.images import png_path, save_png

LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}  # of a VAE's channels; ours is the first


def rates(
    records: int,
    latent: tuple[int, int, int],
    batches: tuple[int, ...],
    image_batch: int,
    resolution: int,
    precision: str,
    codec: Codec,
) -> Question:
    """records: of the latent store that is read, at each of `batches`; images of R x R pixels, so many at a time.

    precision: of the VAE, beside float32.
    """
    images = {"batch": image_batch, "resolution": resolution}
    cases = [{"what": "reading latents", "batch": b, "latent": list(latent), "records": records} for b in batches]
    if isinstance(codec, VAECodec):
        forms = list(product(dict.fromkeys(("no", precision)), LAYOUTS))
        cases += [
            {"what": what, **images, "vae": form, "layout": layout}
            for what in ("encoding", "decoding")
            for form, layout in forms
        ]
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
    layout: str = "",
) -> dict:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as writer:
        if what == "reading latents":
            write_random_store(folder, records, latent)
            store, draw = LatentStore(folder), np.random.default_rng(0)

            def work():
                store.read(draw.integers(0, len(store), batch), draw.random(batch) < 0.5)

        elif what == "writing PNG":
            pixels = torch.randint(0, 256, (batch, 3, resolution, resolution), dtype=torch.uint8)
            smooth = torch.nn.functional.avg_pool2d(pixels.float(), 9, 1, 4).to(torch.uint8)  # noise alone packs badly

            def work():
                list(writer.map(lambda i: save_png(smooth[i], png_path(Path(folder), i)), range(batch)))

        else:
            images = torch.rand(batch, 3, resolution, resolution, device=bench.device) * 2 - 1
            side = resolution // codec.downsampling
            formed = in_form(codec, DTYPES[vae], LAYOUTS[layout])
            latents = torch.randn(batch, codec.channels, side, side, device=bench.device)

            def work():
                with torch.inference_mode():
                    return formed.encode(images) if what == "encoding" else formed.decode(latents)

        seconds = alternate(bench, {what: work})[what]
    return {"per_s": batch / seconds.median, "least_per_s": batch / seconds.most, "most_per_s": batch / seconds.least}


def in_form(codec: VAECodec, dtype: torch.dtype, layout: torch.memory_format) -> VAECodec:
    """The same VAE in this precision and memory layout."""
    formed = VAECodec(deepcopy(codec.vae).to(dtype), codec.source)
    formed.vae.to(memory_format=layout)
    return formed


def table(rows: list[dict]) -> str:
    def size(row: dict) -> str:
        if row["what"] == "reading latents":
            return f"{row['records']:,d} of {'x'.join(map(str, row['latent']))}"
        return f"{row['resolution']}x{row['resolution']}"

    def form(row: dict) -> str:
        return f"{str(DTYPES[row['vae']]).removeprefix('torch.')}, channels {row['layout']}" if "vae" in row else ""

    body = [
        [row["what"], form(row), size(row), str(row["batch"]), f"{row['per_s']:,.4g}",
         f"{row['least_per_s']:,.4g} to {row['most_per_s']:,.4g}"] for row in rows
    ]  # fmt: skip
    return markdown_table(["", "VAE", "", "batch", "a second", "from ... to"], body, 3)
