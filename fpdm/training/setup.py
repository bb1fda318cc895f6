"""What happens before the first step: checks, the network for this data, each rank's share, the run's folder."""

import importlib.util
import math
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fpdm.conditionings import CONDITIONINGS, LABELS
from fpdm.config import DataConfig, ExperimentConfig, OptimConfig, RunConfig, ValidationConfig
from fpdm.data.codec import PIXELS, Codec, open_codec
from fpdm.data.latents import LatentStore, Manifest, check_store_codec
from fpdm.extent import plain
from fpdm.files import write_atomically
from fpdm.locks import only_writer
from fpdm.models import Denoiser, build_model
from fpdm.records import read_yaml, shown
from fpdm.training.checkpoint import find_checkpoint, has_checkpoint, point_latest, prune_checkpoints, step_of
from fpdm.training.facts import read_facts
from fpdm.training.runlog import copy_log, forget_after, has_run, latest_run, new_run
from fpdm.training.sjfb import largest_iterations
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


def check_tracker(tracker: str) -> None:
    """ValueError if the tracker's package is missing: accelerate would silently log nothing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"run.tracker={tracker}: the package is not installed; pip install -e '.[track]'")


def split_batch(optim: OptimConfig, rank: int, ranks: int) -> tuple[slice, int]:
    """This rank's rows of the global batch, and how many of them it takes at a time."""
    if optim.batch_size % ranks:
        raise ValueError(f"optim.batch_size={optim.batch_size}: not a multiple of the {ranks} processes")
    share = optim.batch_size // ranks
    micro = optim.micro_batch_size or share
    if share % micro:
        raise ValueError(
            f"optim.micro_batch_size={micro}: does not divide the {share} samples of each of {ranks} processes"
        )
    return slice(rank * share, (rank + 1) * share), micro


def check_solves(config: ExperimentConfig, network: Denoiser, micro: int) -> None:
    """ValueError for ways to train the solves that this network or this number of samples at a time does not allow."""
    if not network.iterative:
        return
    others = [start for start in config.sjfb.start if start != "input"]
    kind = config.model.injection or "mlp"
    if config.sjfb.supervise != "last" and largest_iterations(config.sjfb).m == 1:
        raise ValueError(
            f"sjfb.supervise={config.sjfb.supervise}: only one update of a step has a gradient, so there is no earlier "
            "iterate to train; raise sjfb.grad, choose another sjfb.variant, or leave it out"
        )
    if config.sjfb.variant == "implicit" and not network.implicit.injection.every_update:
        raise ValueError(
            f"sjfb.variant=implicit with model.injection={kind}: the input enters only at the start, so the embedding "
            "and the pre blocks would not learn; choose another variant or injection"
        )
    if config.sjfb.no_grad and not network.implicit.injection.every_update and config.sjfb.start != ["other"]:
        raise ValueError(
            f"sjfb.no_grad={config.sjfb.no_grad} with model.injection={kind}: the input enters only at the start, so "
            "after updates without gradient the embedding and the pre blocks would not learn; set sjfb.no_grad to 0"
        )
    if others and not network.reusable:
        raise ValueError(
            f"sjfb.start={others[0]} with model.injection={kind}: no update would see the input; choose another "
            "injection, or sjfb.start input"
        )
    if "other" in others and micro % 2:
        raise ValueError(
            f"sjfb.start=other with {micro} samples at a time: neighbours in the batch exchange their solutions; make "
            "optim.micro_batch_size (or each process's share of optim.batch_size) even"
        )


def check_store(data: DataConfig, store: LatentStore) -> None:
    """ValueError if the store is not what the config asks for."""
    manifest = store.manifest
    if data.mirror and manifest.flips < 2:
        raise ValueError(
            f"data.mirror=true: {store.folder} holds no mirror images; set data.mirror: false, "
            "or encode with --mirror true"
        )
    found = {"shape": list(manifest.shape), "classes": len(manifest.class_names)}
    wrong = [name for name, value in found.items() if getattr(data, name) not in (None, value)]
    found["scale"] = manifest.scale
    if None not in (data.scale, manifest.scale) and not math.isclose(data.scale, manifest.scale, rel_tol=1e-4):
        wrong.append("scale")
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"data.{name}={getattr(data, name)}: the latents in {store.folder} have {found[name]}; "
            f"set data.latents to a store that fits, or change data.{name}"
        )
    if data.vae is not None and manifest.fingerprint is not None and data.vae != manifest.codec:
        if PIXELS in (data.vae, manifest.codec):
            raise ValueError(
                f"data.vae={data.vae}: the latents in {store.folder} were made with {manifest.codec}; "
                "set data.latents to a store that fits, or change data.vae"
            )
        _check_same_vae(data.vae, store)


def _check_same_vae(vae: str, store: LatentStore) -> None:
    """Another name may be another location of the same VAE, so the weights are compared."""
    try:
        codec = open_codec(vae)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data.vae={vae}: the latents in {store.folder} were made with {store.manifest.codec}; whether this "
            f"is the same VAE cannot be checked ({error}); if it is, set data.vae to {store.manifest.codec}"
        ) from error
    check_store_codec(store.manifest, codec, store.folder)


def open_store_codec(data: DataConfig, store: LatentStore, device: torch.device) -> Codec:
    """The codec that decodes a store's latents: data.vae, or the one they were made with."""
    source = data.vae or store.manifest.codec
    if source is None:
        raise ValueError(f"data.vae is not set, and the latents in {store.folder} do not name their VAE; set it")
    codec = open_codec(source, device)
    check_store_codec(store.manifest, codec, store.folder)
    return codec


def _check_same_latents(option: str, checkpoint: Path, store: LatentStore) -> None:
    """ValueError if a run would resume, or fork, with other latents than it started with."""
    stored = read_facts(checkpoint / "model")["latents"]
    if stored != store.manifest.content:
        raise ValueError(
            f"{option}: the latents in {store.folder} are not those the run was trained on (content {stored}, "
            f"found {store.manifest.content}); set data.latents to the run's own store, or start a new run"
        )


def build_network(
    config: ExperimentConfig, shape: list[int], classes: int, manifest: Manifest | None = None
) -> Denoiser:
    """The configured network for latents of `shape` (C, h, w) and a number of classes.

    manifest: of the latents, which has the attributes; None if there is no store yet.
    """
    channels, *size = shape
    return build_model(
        config.model.name,
        input_size=plain(size),
        in_channels=channels,
        num_classes=classes,
        learn_sigma=config.diffusion.learn_sigma,
        **_attributes(config, classes, manifest),
        **config.model.overrides(),
    )


def _attributes(config: ExperimentConfig, classes: int, manifest: Manifest | None) -> dict[str, list[float]]:
    """What a network must know of the attributes, nothing if it is conditioned on labels; ValueError if the data do not
    have what it is conditioned on."""
    if CONDITIONINGS[config.model.conditioning].of == LABELS:
        if classes == 1 and config.model.class_dropout > 0:
            raise ValueError(
                f"model.class_dropout={config.model.class_dropout}: the data has one class, so there is no label to "
                "drop; set it to 0"
            )
        return {}
    if manifest is None or not manifest.attribute_names:
        found = "there is no store there yet" if manifest is None else "the store there has no attributes"
        raise ValueError(
            f"model.conditioning={config.model.conditioning} with data.latents={config.data.latents}: {found}; encode "
            "images with attributes (encode_latents.py --attributes FILE), or set model.conditioning to class"
        )
    return {"attribute_mean": manifest.attribute_mean, "attribute_std": manifest.attribute_std}


def is_new(config: ExperimentConfig, resume: str | None) -> bool:
    """Whether a run is new: not resumed, or there is none of its name to resume."""
    return resume is None or (resume == "auto" and not has_run(config.run.results, run_name(config)))


def run_name(config: ExperimentConfig) -> str:
    return config.run.name or config.model.name


def open_run(
    config: ExperimentConfig,
    store: LatentStore,
    resume: str | None,
    fork: str | None,
    init: str | None,
    accelerator: Accelerator,
    held: ExitStack,
) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to continue from; the same on every rank.

    init: the source of weights that the network has, if the run is new. held: takes the lock of the run's folder.
    """
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
    return run, checkpoint


def _find_or_create(
    config: ExperimentConfig,
    store: LatentStore,
    resume: str | None,
    fork: str | None,
    init: str | None,
    held: ExitStack,
) -> list[Path | None]:
    name = run_name(config)
    if is_new(config, resume):
        checkpoint = None
        if fork is not None:
            checkpoint = find_checkpoint(fork)
            _check_resumable(f"--fork {fork}", config, store, checkpoint)
            if config.optim.steps <= step_of(checkpoint):
                raise ValueError(
                    f"--fork {fork}: already at step {step_of(checkpoint)} of optim.steps={config.optim.steps}; "
                    "optim.steps counts the steps of the other run too, so set it higher"
                )
        run = new_run(config.run.results, name)
        held.enter_context(only_writer(run))
        if fork is not None:
            copy_log(checkpoint.parent.parent, run, step_of(checkpoint))
            take_snapshots(checkpoint.parent.parent, run, step_of(checkpoint))
    else:
        source = latest_run(config.run.results, name) if resume in ("latest", "auto") else resume
        checkpoint = find_checkpoint(source)
        run = checkpoint.parent.parent
        for option, other, what in (("--fork", fork, "fork"), ("--init", init, "start from")):
            if other is not None and has_checkpoint(Path(other)) and run == find_checkpoint(other).parent.parent:
                raise ValueError(
                    f"--resume auto with {option} {other}: {name} is the run to {what}; set run.name to another name"
                )
        _check_resumable(f"--resume {resume}", config, store, checkpoint)
        held.enter_context(only_writer(run))
        forget_after(run, step_of(checkpoint))
        forget_snapshots_after(run, step_of(checkpoint))
        point_latest(checkpoint)
        # A kill may have prevented this earlier.
        prune_checkpoints(run, step_of(checkpoint), config.run.keep_last, config.run.keep_every)
    write_atomically(run / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    return [run, checkpoint]


def _check_resumable(option: str, config: ExperimentConfig, store: LatentStore, checkpoint: Path) -> None:
    """ValueError or FileNotFoundError if training cannot continue from a checkpoint; option: as the user gave it."""
    run = checkpoint.parent.parent
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{option}: not inside a run's folder ({run / 'config.yaml'} is missing)")
    _check_same_experiment(option, config, run)
    _check_same_latents(option.split()[0], checkpoint, store)


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


def sampling_facts(config: ExperimentConfig, store: LatentStore) -> dict:
    """What sampling from a checkpoint needs besides the network; stored beside its weights."""
    manifest = store.manifest
    of_labels = CONDITIONINGS[config.model.conditioning].of == LABELS
    return {
        "diffusion": asdict(config.diffusion),
        "codec": manifest.codec,
        "codec_fingerprint": manifest.fingerprint,
        "class_names": manifest.class_names,
        "latents": manifest.content,
        **({} if of_labels else {"attributes": store.kept_attributes}),
    }


def flat_settings(config: ExperimentConfig) -> dict[str, str | int | float | bool]:
    """`section.name` -> value, in the types that trackers take."""
    return {
        f"{section}.{name}": value if isinstance(value, (str, int, float)) else str(value)
        for section, values in asdict(config).items()
        for name, value in values.items()
    }
