"""The experiments by name."""

from functools import partial

from fpdm.soak import bad_input, faults, kills, long_runs, neighbours, power
from fpdm.soak.outcome import Experiment
from fpdm.soak.works import WORKS


def _killed(about: str, rounds: int, *begins: str) -> Experiment:
    works = {name: work for name, work in WORKS.items() if name.startswith(begins)}
    return Experiment(f"SIGKILL: {about}", rounds, partial(kills.play, works))


STUDIES = ("reproduce", "benchmark")  # a minute each
ALONE = {n: work for n, work in WORKS.items() if work.processes == 1 and "bf16" not in n and n not in STUDIES}
IN_PAIRS = {name: work for name, work in WORKS.items() if work.processes == 2}

EXPERIMENTS: dict[str, Experiment] = {
    "kill-training": _killed("training, alone and in two processes", 500, "train FPDM", "train DiT"),
    "kill-preparation": _killed("VAE, classifier, encoding", 250, "train VAE", "train classifier", "encode"),
    "kill-sampling": _killed("sampling and scoring", 200, "sample", "evaluate"),
    "kill-studies": _killed("reproduction and benchmark", 50, "reproduce", "benchmark"),
    "power": Experiment("power failure", 300, partial(power.play, ALONE)),
    "full-disk": Experiment("a full disk", 300, partial(faults.full_disk, ALONE)),
    "failing-read": Experiment("a read that fails, a file that vanishes", 300, partial(faults.failing_read, ALONE)),
    "clock": Experiment("a clock that jumps back", 50, partial(faults.clock, ALONE)),
    "signals": Experiment("SIGTERM, SIGINT, SIGUSR1", 200, partial(faults.stopped, ALONE)),
    "neighbours": Experiment("one of two processes killed, hung or slow", 100, partial(neighbours.play, IN_PAIRS)),
    "bad-input": Experiment("bad input", 10_000, bad_input.play),
    "long-training": Experiment("a long training of a tiny model", 1, long_runs.training),
    "long-sampling": Experiment("many images, sampled in slices", 1, long_runs.sampling),
    "two-commands": Experiment("the same command twice at once", 100, partial(faults.two_at_once, ALONE)),
}
