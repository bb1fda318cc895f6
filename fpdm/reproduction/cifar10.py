"""CIFAR-10: small networks on the latents of a small VAE for two CPU cores, and size S on pixels for a GPU."""

import shutil

from fpdm.chain import run_script
from fpdm.reproduction.bench import Bench, Subject
from fpdm.reproduction.bench_report import SECTIONS
from fpdm.reproduction.contest import Entrant
from fpdm.reproduction.experiments import Section
from fpdm.reproduction.forms import OPPONENTS, START, Form, early_head

RELEASE_LIMIT = 60_000_000  # bytes


def _sjfb(variant: str, no_grad: int, grad: int) -> tuple:
    return ("--sjfb.variant", variant, "--sjfb.no_grad", no_grad, "--sjfb.grad", grad)


# N and M of Tab. 4, and the other ways of Tab. 5.
VARIANTS = {
    "n2-m3": _sjfb("stochastic", 2, 3),
    "n3-m3": _sjfb("stochastic", 3, 3),
    "n6-m6": _sjfb("stochastic", 6, 6),
    "n12-m12": _sjfb("stochastic", 12, 12),
    "multi-step-6": _sjfb("multi-step", 6, 6),
    "jfb-6": _sjfb("jfb", 6, 1),
}


def _entrant(form: Form) -> Entrant:
    """A form of the ladder, with two seeds."""
    words = tuple(word for name, value in form.options.items() for word in (f"--{name}", value))
    return Entrant(form.label, form.config, words, seeds=2)


DIT_12, DIT_6, DIT_3, PAPER = OPPONENTS[:4]
LATE = START.with_options("3 blocks; 1, 2 updates from 75 %", {"sjfb.grad": 2, "sjfb.grow": "[[0,1],[0.75,2]]"})
HEAD = {"sjfb.supervise": "random", **early_head(1)}
HEADED = LATE.with_options(f"{LATE.label}; random, early head", HEAD)
TWO = {"model.implicit_depth": 2, "model.hidden_size": 116}  # as many parameters as 3 blocks of width 96, to 5 %
FORMS = {  # networks of 27 to 30 % of the parameters of the DiT with 12 blocks
    "looped": START.with_options("3 blocks; 1, 2, 4 updates", {}),
    "looped-late": LATE,
    "looped-random": LATE.with_options(f"{LATE.label}; random", {"sjfb.supervise": "random"}),
    "head": HEADED,
    "head-early": HEADED.with_options("3 blocks; 1, 2 updates from 40 %; random, early head", {
        "sjfb.grow": "[[0,1],[0.4,2]]"}),
    "head-last": HEADED.with_options("3 blocks; 1, 2 updates from 88 %; random, early head", {
        "sjfb.grow": "[[0,1],[0.88,2]]"}),
    "head-heavy": HEADED.with_options(f"{HEADED.label} of weight 1/2", {"sjfb.early_head_weight": 0.5}),
    "head-vectors": HEADED.with_options(f"{HEADED.label}, vectors for the loops", {"model.loop_embedding": 2}),
    "head-decay": HEADED.with_options(f"{HEADED.label}, `decay`", {"model.injection": "decay"}),
    "head-mlp": HEADED.with_options(f"{HEADED.label}, narrower, `mlp`", {
        "model.injection": "mlp", "model.hidden_size": 88}),
    "head-post": HEADED.with_options("2 blocks, 1 after; 1, 2 updates from 75 %; random, early head", {
        "model.implicit_depth": 2, "model.post_depth": 1}),
    "head-wide": HEADED.with_options("2 wide blocks; 1, 2 updates from 75 %; random, early head", TWO),
}  # fmt: skip
SMALL = Subject(
    configs="cifar10-small",
    vae="assets/cifar10-vae",
    entrants={
        "dit-12": Entrant("DiT, 12 blocks", "dit", seeds=2),
        "fpdm": Entrant("FPDM", "fpdm", seeds=2, variants=VARIANTS),
        "dit-3": Entrant("DiT, 3 blocks", "dit", ("--model.depth", 3), seeds=2),
        # Width 52 gives as many parameters as the FPDM has.
        "dit-narrow": Entrant("DiT, 12 narrow blocks", "dit", ("--model.hidden_size", 52)),
        "dit-6": Entrant("DiT, 6 blocks", "dit", ("--model.depth", 6), seeds=2),
    },
    rates=(5e-4, 1e-3, 2e-3),
    budgets=(30, 60, 120, 240),
    middle=60,  # 5 timesteps of the DiT with 12 blocks
    core={
        "core-dit-12": _entrant(DIT_12),
        "core-dit-6": _entrant(DIT_6),
        "core-dit-3": _entrant(DIT_3),
        "core-dit-6-head": _entrant(DIT_6.with_options(f"{DIT_6.label}, early head", early_head(2))),
        "core-dit-3-head": _entrant(DIT_3.with_options(f"{DIT_3.label}, early head", early_head(1))),
        "core-fpdm": _entrant(PAPER.with_options(PAPER.label, {"sjfb.no_grad": 3})),  # as the trials chose
    },
    forms={name: _entrant(form) for name, form in FORMS.items()},
    core_rates=(1e-3, 2e-3, 4e-3),
)
FULL = Subject(
    configs="cifar10",
    vae="pixels",
    entrants={
        "dit-12": Entrant("DiT-S/2", "dit-s-2"),
        "fpdm": Entrant("FPDM-S/2", "fpdm-s-2"),
        "dit-3": Entrant("DiT-S/2, 3 blocks", "dit-s-2", ("--model.depth", 3)),
    },
    rates=(5e-4,),
    budgets=(140, 280, 560),  # the paper's; 11, 23 and 46 timesteps of DiT-S/2
    middle=280,
    core={},
    forms={},
    core_rates=(5e-4,),
)


def release(bench: Bench) -> Section:
    """Collect the files to keep in out/release: FPDM's weights in half precision, tables, pictures, logs."""
    folder = bench.out / "release"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run_script("export.py", "--ckpt", bench.runs("fpdm")[0], "--out", folder / "fpdm-s-2", "--half")
    for path in [*bench.out.glob("*.json"), *bench.out.glob("*.png"), *bench.out.glob("*.md")]:
        shutil.copy(path, folder / path.name)
    for path in (bench.out / "runs").glob("*/"):
        for name in ("config.yaml", "log.jsonl"):
            shutil.copy(path / name, folder / f"{path.name}-{name}")
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total, largest = sum(sizes.values()), max(sizes.values())
    if total > RELEASE_LIMIT or largest > 15_000_000:
        raise ValueError(
            f"{folder}: {total:,d} bytes in total, {largest:,d} in the largest file; allowed are at most "
            f"{RELEASE_LIMIT:,d} and 15 MB"
        )
    return Section("Release", f"{len(sizes)} files, {total / 1e6:.1f} MB, in release/.")


TARGETS = {name: section for name, section in SECTIONS.items() if name not in ("core", "asset")} | {"release": release}
