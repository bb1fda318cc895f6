"""The experiments by name."""

from functools import partial

from fpdm.soak import bad_input, clock, disk, kills, long_runs, neighbours, power, reads, signalled, together
from fpdm.soak.material import Material
from fpdm.soak.outcome import Experiment
from fpdm.soak.works import WORKS


def _named(*begins: str) -> dict:
    return {name: work for name, work in WORKS.items() if name.startswith(begins)}


STUDIES = {name: work for name, work in WORKS.items() if work.is_study}  # a minute and more each
KILLED_STUDIES = _named("reproduce", "benchmark")
SHORT = {name: work for name, work in WORKS.items() if name not in STUDIES}
ALONE = {name: work for name, work in SHORT.items() if work.processes == 1}
IN_PAIRS = {name: work for name, work in SHORT.items() if work.processes == 2}
# Two-process works that are cheap to record: their processes make few operations.
RECORDED = ALONE | {name: WORKS[name] for name in ("train FPDM, 2 processes", "encode, 2 processes")}
ON_A_DISK = ALONE | STUDIES


def _killed(about: str, rounds: int, works: dict, times: tuple[int, ...] = (1, 1, 2)) -> Experiment:
    return Experiment(f"SIGKILL: {about}", rounds, partial(kills.play, works, times))


def _writes(material: Material) -> int:
    return len(disk.targets(ON_A_DISK, material))


EXPERIMENTS: dict[str, Experiment] = {
    "kill-training": _killed("training, alone and in two processes", 500, _named("train FPDM", "train DiT")),
    "kill-preparation": _killed("VAE, classifier, encoding", 250, _named("train VAE", "train classifier", "encode")),
    "kill-sampling": _killed("sampling and scoring", 200, _named("sample", "evaluate")),
    "kill-studies": _killed("reproduction and benchmark", 15, KILLED_STUDIES, (4,)),
    "power": Experiment("power failure", 300, partial(power.play, RECORDED)),
    "full-disk": Experiment("a full disk, at each write in turn", _writes, partial(disk.play, ON_A_DISK)),
    "failing-read": Experiment("a read that fails, a file that vanishes", 300, partial(reads.play, ALONE)),
    "clock": Experiment("a clock that jumps, files of other times", 100, partial(clock.play, ALONE)),
    "signals": Experiment("SIGTERM, SIGINT, SIGUSR1", 250, partial(signalled.play, SHORT)),
    "neighbours": Experiment("one of two processes killed, hung or slow", 100, partial(neighbours.play, IN_PAIRS)),
    "bad-input": Experiment("bad input", 10_000, bad_input.play),
    "long-training": Experiment("a long training of a tiny model", 1, long_runs.training),
    "long-sampling": Experiment("many images, sampled in slices", 1, long_runs.sampling),
    "two-commands": Experiment("the same command twice at once", 120, partial(together.play, SHORT)),
}
