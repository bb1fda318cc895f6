"""Speed of sampling, from noise to PNG files, and the share of time that is not spent in block passes."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import torch

from fpdm.benchmarks.timing import Bench, Question, alternate, matrix_product
from fpdm.benchmarks.workloads import blocks_alone, network, sampling_run
from fpdm.data.codec import Codec
from fpdm.devices import peak_memory
from fpdm.evaluation.tables import markdown_table
from fpdm.loading import make_source
from fpdm.models import compile_layers, forward_cost
from fpdm.processes import Diffusion
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.images import png_path, save_png
from fpdm.sampling.settings import SamplingConfig

BATCHES = 2  # sampled in one measurement


def sampling(
    models: tuple[str, ...], latent: tuple[int, int, int], batch: int, modes: tuple[str, ...], budgets: tuple[int, ...],
    iterations: int, codec: Codec,
) -> Question:  # fmt: skip
    """iterations: per timestep, for FPDM. codec: decodes the latents; its weights do not matter."""
    common = {"latent": list(latent), "batch": batch, "iterations": iterations}
    cases = [common | {"model": m, "mode": mode, "budget": b} for m, mode, b in product(models, modes, budgets)]
    return Question("Sampling", cases, lambda bench, **case: measure(bench, codec, **case), table)


def measure(
    bench: Bench, codec: Codec, latent: list[int], batch: int, iterations: int, model: str, mode: str, budget: int
) -> dict:
    torch.compiler.reset()
    sampled = network(bench, model, latent).eval()
    cost = forward_cost(sampled)
    if mode != "eager":
        compile_layers(sampled, graphs=mode == "graphs")
    source = make_source(sampled, Diffusion(), codec, bench.precision, cost)
    config = SamplingConfig(budget=budget, iterations=iterations if cost.iterative else None)
    plan = plan_for(source, config)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as writers:

        def images():
            """Sample BATCHES batches. As in sample.py, files are written while the next batch is computed."""
            writing = []
            for first in range(0, BATCHES * batch, batch):
                with torch.inference_mode():
                    pixels = sample_images(source, config, plan, range(first, first + batch)).cpu()
                for job in writing:
                    job.result()
                writing = [
                    writers.submit(save_png, image, png_path(Path(folder), first + i)) for i, image in enumerate(pixels)
                ]
            for job in writing:
                job.result()

        def decode():
            with torch.inference_mode():
                return codec.decode(torch.zeros(batch, *latent, device=bench.device))

        multiply, flops = matrix_product(bench)
        works = {"whole": images, "latents": sampling_run(bench, sampled, latent, batch, plan), "decoding": decode,
                 "blocks": blocks_alone(bench, sampled, batch, plan), "peak": multiply}  # fmt: skip
        times = alternate(bench, works)
        peak = None
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
            images()
            peak = peak_memory(bench.device) / 2**30
    spent = cost.total_flops(plan.iterations) * batch
    return {
        "timesteps": len(plan.steps),
        "block_passes": plan.block_passes,
        "images_per_s": BATCHES * batch / times["whole"].median,
        "latents_per_s": batch / times["latents"].median,
        "blocks_s": times["blocks"].median / batch,
        "decoding_s": times["decoding"].median / batch,
        "tflops": spent / times["latents"].median / 1e12,
        "peak_tflops": flops / times["peak"].median / 1e12,
        "peak_gib": peak,
        "first_s": times["whole"].first,
    }


def table(rows: list[dict]) -> str:
    head = ["", "mode", "block passes", "timesteps", "images/s", "latents/s", "TFLOP/s",
            "share of matrix-product peak", "overhead, images", "overhead, latents", "first run, s",
            "peak GiB"]  # fmt: skip
    body = [
        [
            row["model"], row["mode"], str(row["block_passes"]), str(row["timesteps"]), f"{row['images_per_s']:.3g}",
            f"{row['latents_per_s']:.3g}", f"{row['tflops']:.3g}", f"{row['tflops'] / row['peak_tflops']:.0%}",
            f"{1 - row['blocks_s'] * row['images_per_s']:.1%}", f"{1 - row['blocks_s'] * row['latents_per_s']:.1%}",
            f"{row['first_s']:.1f}", "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return (
        f"DDIM with reuse, {rows[0]['iterations']} iterations per timestep for FPDM, batch {rows[0]['batch']}, "
        f"latents {rows[0]['latent']}. The rate of images includes decoding and PNG files, the rate of latents does "
        f'not. "Overhead" is the share of time that is not spent in block passes (measured alone).\n\n'
        f"{markdown_table(head, body, 2)}"
    )
