"""Milliseconds per image, measured with nothing beside: scores are computed several at a time, and say little of it."""

import json
import statistics
import time
from collections.abc import Iterable

from fpdm.files import write_atomically
from fpdm.records import read_object
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.ladder import with_iterations
from fpdm.sampling.generate import sample

ROUNDS = 3
SAMPLER = "ab2"  # the solvers cost the same


def milliseconds(bench: Bench, wanted: Iterable[tuple[str, dict, int]], file: str = "speed.json") -> dict[str, float]:
    """Of networks with a way and a budget (`key`): sampling and decoding of one batch, on all cores, in several rounds
    in turn; the medians, divided by the images. Measured once, all together, and kept in out/<file>.
    """
    path = bench.out / file
    settings = {key(*each): (each[0], {"budget": each[2], "sampler": SAMPLER, **each[1]}) for each in wanted}
    if not path.exists() or not settings.keys() <= read_object(path).keys():
        times = {each: [] for each in settings}
        for _ in range(ROUNDS):
            for each, (name, options) in settings.items():
                source = bench.trained(bench.runs(name)[0]).contender.source
                begun = time.perf_counter()
                sample(source, bench.batch_size, bench.batch_size, **options).cpu()
                times[each].append(1000 * (time.perf_counter() - begun) / bench.batch_size)
        write_atomically(path, json.dumps({each: statistics.median(found) for each, found in times.items()}, indent=1))
    return read_object(path)


def key(name: str, way: dict, budget: int) -> str:
    return f"{name}{with_iterations(way)}, {budget} block passes"
