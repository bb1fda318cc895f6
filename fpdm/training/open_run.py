"""The run's folder: a new one, that of a run to resume, or a fork of another run; locked while the run trains."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fpdm.config import ExperimentConfig, OptimConfig, RunConfig, ValidationConfig
from fpdm.data.latents import LatentStore
from fpdm.files import write_atomically
from fpdm.locks import only_writer
from fpdm.records import read_yaml, shown
from fpdm.training.checkpoint import find_checkpoint, has_checkpoint, point_latest, prune_checkpoints, step_of
from fpdm.training.facts import read_facts
from fpdm.training.runlog import copy_log, forget_after, has_run, latest_run, new_run
from fpdm.training.snapshots import forget_snapshots_after, take_snapshots

# Settings that a resumed run may change. The batch size and the seed determine the order of the records, so they may
# not change. The path of the latents may, because their content is compared instead. An optimizer's state fits its own
# kind and groups, and an average must be there from the first step.
RESUMABLE = {
    "optim": set(OptimConfig.__dataclass_fields__)
    - {"batch_size", "optimizer", "decay", "mup_base_width", "ema_extra", "ema_profiles"},
    "run": set(RunConfig.__dataclass_fields__) - {"seed"},
    "data": {"latents", "vae", "shape", "scale", "classes"},
    "validation": set(ValidationConfig.__dataclass_fields__),
}


def is_new(config: ExperimentConfig, resume: str | None) -> bool:
    """Whether a run is new: not resumed, or there is none of its name to resume."""
    return resume is None or (resume == "auto" and not has_run(config.run.results, run_name(config)))


def run_name(config: ExperimentConfig) -> str:
    return config.run.name or config.model.name


@contextmanager
def open_run(
    config: ExperimentConfig,
    store: LatentStore,
    resume: str | None,
    fork: str | None,
    init: str | None,
    accelerator: Accelerator,
) -> Iterator[tuple[Path, Path | None]]:
    """The run's folder and the checkpoint to continue from; the same on every rank. The folder is locked inside.

    init: the source of weights that the network has, if the run is new.
    """
    with ExitStack() as held:
        found = [None, None, None]
        if accelerator.is_main_process:
            try:
                found[:2] = _find_or_create(config, store, resume, fork, init, held)
            except (ValueError, OSError) as error:  # raised on every rank, so that none waits for a rank that is gone
                found[2] = error
        broadcast_object_list(found)
        run, checkpoint, error = found
        if error is not None:
            raise error
        yield run, checkpoint


def _find_or_create(
    config: ExperimentConfig,
    store: LatentStore,
    resume: str | None,
    fork: str | None,
    init: str | None,
    held: ExitStack,
) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to continue from. held: takes the lock of the folder."""
    if is_new(config, resume):
        run, checkpoint = _create(config, store, fork, held)
    else:
        run, checkpoint = _find(config, store, resume, fork, init, held)
    write_atomically(run / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    return run, checkpoint


def _create(
    config: ExperimentConfig, store: LatentStore, fork: str | None, held: ExitStack
) -> tuple[Path, Path | None]:
    """The folder of a new run and, for a fork, the checkpoint of the other run."""
    checkpoint = None
    if fork is not None:
        checkpoint = find_checkpoint(fork)
        _check_resumable(f"--fork {fork}", config, store, checkpoint)
        if config.optim.steps <= step_of(checkpoint):
            raise ValueError(
                f"--fork {fork}: already at step {step_of(checkpoint)} of optim.steps={config.optim.steps}; "
                "optim.steps counts the steps of the other run too, so set it higher"
            )
    run = new_run(config.run.results, run_name(config))
    held.enter_context(only_writer(run))
    if fork is not None:
        copy_log(checkpoint.parent.parent, run, step_of(checkpoint))
        take_snapshots(checkpoint.parent.parent, run, step_of(checkpoint))
    return run, checkpoint


def _find(
    config: ExperimentConfig, store: LatentStore, resume: str, fork: str | None, init: str | None, held: ExitStack
) -> tuple[Path, Path]:
    """The folder of a run to resume, as it was at its last checkpoint, and that checkpoint."""
    name = run_name(config)
    source = latest_run(config.run.results, name) if resume in ("latest", "auto") else resume
    run = find_checkpoint(source).parent.parent
    for option, other, what in (("--fork", fork, "fork"), ("--init", init, "start from")):
        if other is not None and has_checkpoint(Path(other)) and run == find_checkpoint(other).parent.parent:
            raise ValueError(
                f"--resume auto with {option} {other}: {name} is the run to {what}; set run.name to another name"
            )
    _check_run(f"--resume {resume}", run)
    held.enter_context(only_writer(run))
    checkpoint = find_checkpoint(source)  # another program may have gone on with the run while this one waited
    _check_resumable(f"--resume {resume}", config, store, checkpoint)
    forget_after(run, step_of(checkpoint))
    forget_snapshots_after(run, step_of(checkpoint))
    point_latest(checkpoint)
    # A kill may have prevented this earlier.
    prune_checkpoints(run, step_of(checkpoint), config.run.keep_last, config.run.keep_every)
    return run, checkpoint


def _check_resumable(option: str, config: ExperimentConfig, store: LatentStore, checkpoint: Path) -> None:
    """ValueError or FileNotFoundError if training cannot continue from a checkpoint; option: as the user gave it."""
    run = checkpoint.parent.parent
    _check_run(option, run)
    _check_same_experiment(option, config, run)
    _check_same_latents(option.split()[0], checkpoint, store)


def _check_run(option: str, run: Path) -> None:
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{option}: not inside a run's folder ({run / 'config.yaml'} is missing)")


def _check_same_experiment(option: str, config: ExperimentConfig, run: Path) -> None:
    before, now = read_yaml(run / "config.yaml"), asdict(config)
    for section, values in before.items():
        if section not in now or not isinstance(values, dict):
            raise ValueError(
                f"{run / 'config.yaml'}: {section}={shown(values)}: not a section of settings; restore the file"
            )
    # A setting that the run's program did not have yet was what its default is now.
    defaults = asdict(ExperimentConfig())
    changed = [
        f"{section}.{name} was {old}, is {now[section].get(name)}"
        for section in defaults | before
        for name, old in (defaults.get(section, {}) | before.get(section, {})).items()
        if name not in RESUMABLE.get(section, ()) and now[section].get(name) != old
    ]
    if changed:
        raise ValueError(
            f"{option}: this is another experiment ({'; '.join(changed)}); "
            f"use the run's own --config {run / 'config.yaml'}, or start a new run"
        )


def _check_same_latents(option: str, checkpoint: Path, store: LatentStore) -> None:
    """ValueError if a run would resume, or fork, with other latents than it started with."""
    stored = read_facts(checkpoint / "model")["latents"]
    if stored != store.manifest.content:
        raise ValueError(
            f"{option}: the latents in {store.folder} are not those the run was trained on (content {stored}, "
            f"found {store.manifest.content}); set data.latents to the run's own store, or start a new run"
        )
