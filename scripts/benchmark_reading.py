"""How fast random records are read from a latent store: writes one of random numbers, reads, removes it."""

import json
import logging
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from fpdm import cli
from fpdm.config import check_at_least
from fpdm.data.latents import LatentStore
from fpdm.data.synthetic import write_random_store

logger = logging.getLogger("fpdm")


@dataclass
class Settings:
    """What is read, and how.

    Args:
        records: records of the store.
        shape: channels, height and width of a latent.
        shard: records per file.
        batch_size: records per read; one line of the table each.
        seconds: how long to read with each batch size.
        threads: of torch's arithmetic (null for its own choice).
        folder: where the temporary store goes (null for the system's folder for temporary files).
        out: JSON file for the results (null for none).
    """

    records: int = 100_000
    shape: list[int] = field(default_factory=lambda: [4, 32, 32])
    shard: int = 4096
    batch_size: list[int] = field(default_factory=lambda: [64, 256])
    seconds: float = 5.0
    threads: int | None = None
    folder: str | None = None
    out: str | None = None

    def __post_init__(self):
        check_at_least(1, records=self.records, shard=self.shard, threads=self.threads)
        check_at_least(0, seconds=self.seconds)
        for name, values in (("shape", self.shape), ("batch_size", self.batch_size)):
            if not values or min(values) < 1 or (name == "shape" and len(values) != 3):
                raise ValueError(
                    f"{name}={values}: positive numbers, as in {'4,32,32' if name == 'shape' else '64,256'}"
                )


def parser():
    return cli.make_parser(Settings, __doc__)


def measure(store: LatentStore, batch_size: int, seconds: float) -> dict:
    """Rates of reading random records, of which random ones are mirrored."""
    draw, read = np.random.default_rng(0), 0
    start = time.perf_counter()
    while read == 0 or time.perf_counter() - start < seconds:
        store.read(draw.integers(0, len(store), batch_size), draw.random(batch_size) < 0.5)
        read += batch_size
    rate = read / (time.perf_counter() - start)
    needed = store.manifest.record["moments"].itemsize // store.manifest.flips
    return {
        "batch_size": batch_size,
        "records_per_second": round(rate),
        "megabytes_per_second": round(rate * needed / 1e6),
    }


def main() -> None:
    settings = cli.parse(Settings, parser())
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="latents-", dir=settings.folder) as folder:
        manifest = write_random_store(folder, settings.records, settings.shape, shard=settings.shard)
        start = time.perf_counter()
        store = LatentStore(folder)
        opened = time.perf_counter() - start
        results = [measure(store, batch_size, settings.seconds) for batch_size in settings.batch_size]
    size = manifest.record.itemsize
    lines = [
        f"{manifest.count:,d} records of {size:,d} bytes in {len(manifest.shards)} files, opened in {opened:.3f} s, "
        f"{torch.get_num_threads()} thread(s)",
        "",
        "| batch size | records/s | MB/s |",
        "| ---: | ---: | ---: |",
        *(f"| {r['batch_size']} | {r['records_per_second']:,d} | {r['megabytes_per_second']:,d} |" for r in results),
    ]
    logger.info("\n".join(lines))
    if settings.out:
        facts = {"settings": asdict(settings), "record_bytes": size, "opened_in_seconds": opened, "results": results}
        Path(settings.out).write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    cli.run(main)
