"""The model to keep of the section `core`: the best form, as a folder that needs nothing else."""

import shutil

from fpdm.chain import run_script
from fpdm.evaluation.seeds import Results, spread
from fpdm.files import write_atomically
from fpdm.reproduction.bench import Bench
from fpdm.reproduction.bench_core import best_way
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.ladder import with_iterations

LIMIT = 12_000_000  # bytes
CARD = """A grid of images, a few seconds on a CPU:

```
python scripts/sample.py --ckpt assets/fpdm-cifar10 --budget {budget} --iterations {iterations} --sampler {sampler} \\
    --num-samples 64 --out samples/cifar10
```

Form: {label} (docs/results/core.md). Trained on nine tenths of CIFAR-10's training images, 32x32 pixels, for
{seconds:g} s of one CPU core, in the latents of the VAE that lies beside it.

{score}, sampled as above: {distance:.2f} for this training seed ({seed}), {all} over {seeds} seeds.
{memorised:.1%} of the samples are as near to a training image as only 1 % of the held-out images are.

Limits: the images have the colours and the composition of CIFAR-10, but rarely a clear object. The network and its
training are small: they are made for comparisons on two CPU cores.
"""


def asset(bench: Bench) -> Section:
    """Export the form with the lowest mean score at the middle budget to out/asset: its best seed, in half precision,
    with the VAE, and a card that says how good it is."""
    budget = bench.subject.middle
    ways = {name: best_way(bench, name, budget) for name in bench.core.entrants if name in bench.subject.forms}
    found = {name: bench.score(name, budget=budget, sampler=sampler, **way) for name, (sampler, way) in ways.items()}
    results = {name: Results(scores) for name, scores in found.items()}
    name = min(results, key=lambda each: results[each].distances.mean())
    seed = int(results[name].distances.argmin())
    (sampler, way), best = ways[name], results[name]
    folder, notes, score = bench.out / "asset", bench.out / "card.md", found[name][seed]
    card = CARD.format(
        budget=budget, iterations=way["iterations"], sampler=sampler, label=bench.core.entrants[name].label,
        seconds=bench.contest.seconds, score=bench.score_name, distance=score.distance, seed=seed,
        memorised=score.memorised, all=spread(best.distances), seeds=len(best.distances),
    )  # fmt: skip
    write_atomically(notes, card)
    shutil.rmtree(folder, ignore_errors=True)
    run_script("export.py", "--ckpt", bench.runs(name)[seed], "--out", folder, "--half", "--with-vae", "--notes", notes)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{folder}: {size:,d} bytes; allowed are at most {LIMIT:,d}")
    label = bench.core.entrants[name].label
    rows = ", ".join(f"{bench.core.entrants[each].label}: {spread(result.distances)}{with_iterations(ways[each][1])}"
                     for each, result in results.items())  # fmt: skip
    text = f"{label}, seed {seed}, {size / 1e6:.1f} MB, in asset/. At {budget} block passes: {rows}."
    return Section("The model to keep", text)
