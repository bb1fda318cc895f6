"""The model to keep of a study: its best run as a folder that needs nothing else, with a card that says how good it
is."""

import shutil
from pathlib import Path
from typing import NamedTuple

from fpdm.chain import run_script
from fpdm.evaluation.seeds import Results, spread
from fpdm.files import write_atomically
from fpdm.reproduction.ladder import with_iterations

LIMIT = 12_000_000  # bytes
CARD = """A grid of images, a few seconds on a CPU:

```
python scripts/sample.py --ckpt assets/{asset} \\
    {settings} \\
    --num-samples 64 --out samples/{asset}
```

Form: {label} ({docs}). Trained on {data}, for {seconds:.0f} s of one CPU core, in the latents of the VAE that lies
beside it.

{score}, sampled as above: {distance:.2f} for this training seed ({seed}), {all} over {seeds} seeds.
{memorised:.1%} of the samples are as near to a training image as only 1 % of the held-out images are.

Limits: {limits}
"""


class Card(NamedTuple):
    """What a study knows of its model beforehand. asset: name of its folder. docs: the page with the scores. data: what
    it is trained on. limits: what to expect of its images."""

    asset: str
    docs: str
    data: str
    limits: str


class Candidate(NamedTuple):
    """A form with its runs, one for each seed. results: their scores. settings: of the SamplingConfig of these scores,
    among them the budget. seconds: of a training."""

    label: str
    runs: list[Path]
    results: Results
    settings: dict
    seconds: float


def keep(candidates: list[Candidate], card: Card, score: str, out: Path) -> str:
    """Export the form with the lowest mean score to out/asset: its best seed, in half precision, with the VAE and the
    card. Returns what was kept, and the scores of all. score: the name of the score."""
    best = min(candidates, key=lambda each: each.results.distances.mean())
    seed = int(best.results.distances.argmin())
    distances = best.results.distances
    settings = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best.settings.items())
    notes = CARD.format(
        asset=card.asset, settings=settings, label=best.label, docs=card.docs, data=card.data, seconds=best.seconds,
        score=score, distance=distances[seed], seed=seed, all=spread(distances), seeds=len(distances),
        memorised=best.results.memorised[seed], limits=card.limits,
    )  # fmt: skip
    folder = out / "asset"
    write_atomically(out / "card.md", notes)
    shutil.rmtree(folder, ignore_errors=True)
    run_script("export.py", "--ckpt", best.runs[seed], "--out", folder, "--half", "--with-vae",
               "--notes", out / "card.md")  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{folder}: {size:,d} bytes; allowed are at most {LIMIT:,d}")
    scores = ", ".join(f"{each.label}: {spread(each.results.distances)}{with_iterations(each.settings)}"
                       for each in candidates)  # fmt: skip
    budget = best.settings["budget"]
    return f"{best.label}, seed {seed}, {size / 1e6:.1f} MB, in asset/. At {budget} block passes: {scores}."
