"""The training loop, on accelerate: one process or many, CPU or GPU. Reads top to bottom."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from torch import nn
from tqdm import tqdm

from fpdm.config import ExperimentConfig
from fpdm.devices import device_peak_tflops
from fpdm.training.batches import read_ahead
from fpdm.training.describe import describe_memory, first_screen
from fpdm.training.log_values import status_line, step_values
from fpdm.training.meter import Meter
from fpdm.training.open_run import open_run
from fpdm.training.parts import Parts, make_parts
from fpdm.training.progress import Progress, restore, save
from fpdm.training.runlog import RunLog, start_tracker
from fpdm.training.setup import flat_settings
from fpdm.training.signals import StopRequest
from fpdm.training.snapshots import save_snapshots
from fpdm.training.start import Init, check_start
from fpdm.training.step import Outcome, take_step
from fpdm.training.validation import Measure, score_of, validate, validation_line
from fpdm.training.watch import Report, Watch


class TrainingDiverged(FloatingPointError):
    """Several non-finite steps in a row; the last checkpoint holds the weights before them.

    exit_status: of the command, so that a study can tell this from other failures.
    """

    exit_status = 4


def train(
    config: ExperimentConfig,
    resume: str | None = None,
    on_preview: Callable[[Path, int, nn.Module], None] | None = None,
    measure: Measure | None = None,
    fork: str | None = None,
    init: Init | None = None,
) -> Path:
    """Train as `config` says; returns the run's folder.

    resume: `latest` (the newest run of this name), `auto` (the same, or a new run if there is
        none), a run's folder or one of its checkpoints.
    on_preview: called on the main process as (run folder, step, EMA model) every
        `run.preview_every` steps.
    measure: called on every process with the EMA model every `run.validate_every` steps, for values besides the loss
        on held-out latents.
    fork: a run's folder or one of its checkpoints, from which a new run starts. It continues the other's log, and may
        differ from it where a resumed run may, as in the length or a cool-down. With resume=auto, only if there is no
        run of this name yet.
    init: weights that the network of a new run starts from, and with it the averages. With resume=auto, only if there
        is no run of this name yet.

    SIGTERM, SIGUSR1 or Ctrl-C stops it early, with a checkpoint, after the current step or the next one. ValueError if
    another program is training this run.
    """
    check_start(resume, fork, init and init.source)
    parts = make_parts(config, resume, init, measure, on_preview)
    accelerator, is_main = parts.accelerator, parts.accelerator.is_main_process
    with open_run(config, parts.store, resume, fork, init and init.source, accelerator) as (run, checkpoint):
        peak = device_peak_tflops(accelerator.device, config.run.mixed_precision, config.run.tf32)
        meter = Meter(accelerator.device, config.optim.batch_size, peak)
        progress = restore(run, checkpoint, parts, meter)
        start_tracker(accelerator, config.run.tracker, run, flat_settings(config))
        parts.learner.model.train()
        with StopRequest(is_main) as stop, closing(RunLog(run, is_main)) as log:
            _take_steps(parts, run, progress, meter, stop, log)
        for tracker in accelerator.trackers:
            tracker.finish()
    return run


def _take_steps(parts: Parts, run: Path, progress: Progress, meter: Meter, stop: StopRequest, log: RunLog) -> None:
    """The steps that are left, each followed by what is due."""
    config, accelerator, learner, best = parts.config, parts.accelerator, parts.learner, progress.best
    start, steps = progress.step, config.optim.steps
    with (
        tqdm(total=steps, initial=start, desc="train", unit="step", disable=not accelerator.is_main_process) as bar,
        closing(read_ahead(parts, start)) as batches,
    ):
        _say_what_begins(parts, run, start, log)
        watch = Watch(accelerator, progress.skipped, progress.in_a_row)
        due = False  # whether a checkpoint waits to be written
        for step, latents in batches:
            done = step + 1
            validated = is_due(config.run.validate_every, done, steps)
            logged = is_due(config.run.log_every, done, steps) or validated
            outcome = take_step(parts, step, latents, with_residual=logged)
            meter.add(outcome.sums.losses, outcome.norm, outcome.finite, *outcome.cost)
            watch.post(step, outcome.finite, stop.signal is not None)
            bar.update()

            due = due or done % config.run.checkpoint_every == 0 or done == steps
            known = watch.read(now=logged or due)
            if known.asked and not due:
                due, known = True, watch.read(now=True)
            _check_divergence(parts, run, done, known)
            # Weights with non-finite gradients are not saved (with a scaler, it was the scale that was too high).
            trusted = known.in_a_row == 0 or accelerator.scaler is not None

            if logged:
                found = _log_step(parts, meter, log, done, outcome, known, validated)
                if trusted and score_of(found) < best["score"]:
                    best = {"step": done, "score": score_of(found)}
                    due = due or config.run.keep_best
            if is_due(config.optim.ema_snapshot_every, done, steps):
                _on_main(parts, meter, watch, save_snapshots, run, done, learner.averages.values())
            if due and trusted:
                due = False
                save(run, Progress(done, known.skipped, known.in_a_row, best), parts, meter, log)
                if known.asked and done < steps:
                    log.say(
                        f"stopped by {stop.signal or 'a signal to another process'} after step {done} of {steps}, "
                        f"checkpoint written; resume with --resume {run}"
                    )
                    break
            if config.run.preview_every and done % config.run.preview_every == 0:
                _on_main(parts, meter, watch, parts.on_preview, run, done, learner.ema)


def _say_what_begins(parts: Parts, run: Path, start: int, log: RunLog) -> None:
    """The first screen, and what the network was given of other weights."""
    config, accelerator, network = parts.config, parts.accelerator, parts.learner.network
    if accelerator.is_main_process:
        on_cpu = accelerator.device.type == "cpu"  # seconds of counting are worth it only where memory is scarce
        memory = None if on_cpu else describe_memory(config, network, accelerator.num_processes)
        log.say(first_screen(config, network, parts.cost_at(None), parts.store, run, start, memory))
    if parts.taken is not None:
        log.say(parts.taken)


def _check_divergence(parts: Parts, run: Path, done: int, known: Report) -> None:
    """TrainingDiverged after too many non-finite steps in a row, or if the weights of the last step cannot be saved."""
    most, last = parts.config.optim.max_skipped, done == parts.config.optim.steps
    ended_badly = last and known.in_a_row > 0 and parts.accelerator.scaler is None
    if known.longest >= most or ended_badly:
        what = "the last step" if ended_badly else f"{known.longest} steps in a row, up to step {known.step},"
        raise TrainingDiverged(
            f"{what} had gradients that are not finite (optim.max_skipped={most}); the last "
            f"checkpoint in {run} is from before that. Lower optim.lr or increase optim.warmup"
        )


def _log_step(
    parts: Parts, meter: Meter, log: RunLog, done: int, outcome: Outcome, known: Report, validated: bool
) -> dict[str, float]:
    """Log a step, and validate the averaged weights if that is due; returns what the validation found."""
    values, found = step_values(parts, meter, outcome, known), {}
    line = status_line(done, parts.config.optim.steps, values)
    if validated:
        with meter.paused():
            found = validate(parts.learner.ema, parts.held_out, parts.measure)
        line = f"{line}\n{validation_line(done, found)}"
    log.record(done, values | found, line)
    parts.accelerator.log(values | found, step=done)
    return found


def _on_main(parts: Parts, meter: Meter, watch: Watch, act: Callable | None, *arguments) -> None:
    """Let the main process act while the others wait, outside the rates of the log."""
    watch.read(now=True)  # so that steps which are still queued count in the rates
    with meter.paused():
        if parts.accelerator.is_main_process and act is not None:
            act(*arguments)
        parts.accelerator.wait_for_everyone()


def is_due(every: int, done: int, steps: int) -> bool:
    """Whether something is due after step `done` that happens every so many steps (0: never) and after the last."""
    return every > 0 and (done % every == 0 or done == steps)
