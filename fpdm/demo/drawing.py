"""Drawings: requests that one worker samples, one after the other, and that can be stopped between two timesteps."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpdm.data.batches import to_uint8
from fpdm.demo.request import Asked
from fpdm.devices import tf32_as
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.generate import conditions_for, plan_for, sample_images, total_flops
from fpdm.sampling.plan import Plan
from fpdm.sampling.trace import Recorder, Spent

FILM_ROWS = 4  # images in a filmstrip


class Stopped(Exception):
    """The drawing was stopped."""


class Full(ValueError):
    """No more drawings may wait."""


class Drawn(NamedTuple):
    """One finished side.

    images: uint8 (B, 3, H, W). seconds: of sampling and decoding. passes, flops: of one image, on average under
    a run-time allocation. times (F,): timesteps of `film`, uint8 (R, F, 3, H, W), the images predicted there for the
    first R images. residuals (S, K): median over the images of each update at each of the plan's timesteps, NaN where
    there was none; None for a DiT.
    """

    asked: Asked
    plan: Plan
    images: Tensor
    seconds: float
    passes: float
    flops: float
    times: list[float]
    film: Tensor
    residuals: np.ndarray | None

    def captions(self) -> list[str]:
        """What each image is: its number, and the name of its class if the model has classes."""
        asked, numbers = self.asked, range(self.asked.images)
        if not asked.offered.class_names:
            return [f"image {i}" for i in numbers]
        labels = conditions_for(asked.offered.source, asked.config, numbers).tolist()
        return [
            f"image {i}, class {asked.offered.class_names[label]}" for i, label in zip(numbers, labels, strict=True)
        ]


class Progress(NamedTuple):
    """Timesteps done, and of how many, on one of the sides, counted from 0."""

    side: int
    done: int
    of: int


class Drawing:
    """The sides of one request, to be drawn by the worker. Only `stop` and `wait` are for other threads."""

    def __init__(self, sides: Sequence[Asked]):
        self.sides = sides
        self.progress = Progress(0, 0, 0)
        self._stopped = threading.Event()
        self._drawn: Future[list[Drawn]] = Future()

    def stop(self) -> None:
        """Ask to end at the next timestep."""
        self._stopped.set()

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more: it was stopped, is finished or has failed."""
        return self._stopped.is_set() or self._drawn.done()

    def wait(self, seconds: float) -> list[Drawn] | None:
        """The sides; None if they are not finished after so many seconds. Raises Stopped, or the drawing's error."""
        if self._stopped.is_set():  # it may not have begun, and would not for a long time
            raise Stopped
        try:
            return self._drawn.result(seconds)
        except NotYet:
            return None

    def work(self) -> None:
        """Draw, in the worker's thread."""
        try:
            self._drawn.set_result([draw(asked, self._watch(i)) for i, asked in enumerate(self.sides)])
        except BaseException as error:  # it belongs to whoever waits
            self._drawn.set_exception(error)

    def _watch(self, side: int) -> Callable[[int, int], None]:
        def watch(done: int, of: int) -> None:
            if self._stopped.is_set():
                raise Stopped
            self.progress = Progress(side, done, of)

        return watch


class Studio:
    """One worker for all visitors. A single thread also means a single set of arithmetic threads and their memory."""

    def __init__(self, queue: int):
        """queue: drawings that may wait while one is drawn."""
        self.queue = queue
        self._worker = ThreadPoolExecutor(1, "drawing")
        self._begun: list[Drawing] = []
        self._counting = threading.Lock()

    def begin(self, sides: Sequence[Asked]) -> Drawing:
        """Have the sides drawn, after what was begun before. Full if too many wait already."""
        with self._counting:
            self._begun = [drawing for drawing in self._begun if not drawing.over]
            if len(self._begun) > self.queue:
                raise Full(f"queue={self.queue}: as many drawings wait already; try again in a moment")
            drawing = Drawing(sides)
            self._begun.append(drawing)
            self._worker.submit(drawing.work)
        return drawing


@torch.inference_mode()
def draw(asked: Asked, watch: Callable[[int, int], None]) -> Drawn:
    """Draw one side. watch: called with (model calls made, model calls of the plan)."""
    source, config = asked.offered.source, asked.config
    plan = plan_for(source, config)
    at_run_time = ALLOCATIONS[config.allocation].at_run_time is not None
    recorder, spent = Recorder(), Spent(plan)
    watch(0, len(plan.steps))

    def on_step(position, call) -> None:
        recorder(position, call)
        if at_run_time:
            spent(position, call)
        watch(position + 1, len(plan.steps))

    begun = time.perf_counter()
    with tf32_as(True):  # as sample.py
        indices = range(asked.images)
        images = sample_images(source, config, plan, indices, on_step, with_residuals=source.iterative).cpu()
    seconds = time.perf_counter() - begun
    updates = spent.mean() if at_run_time else plan.iterations
    trace = recorder.trace(plan)
    frames = trace.frames()
    x0 = trace.x0[frames][:, :FILM_ROWS].transpose(0, 1)  # (R, F, C, H, W)
    film = to_uint8(source.codec.decode(x0.flatten(0, 1))).cpu().unflatten(0, x0.shape[:2])
    return Drawn(
        asked, plan, images, seconds, plan.cost.total_blocks(updates), total_flops(config, plan, updates),
        [plan.timesteps[frame] for frame in frames], film,
        None if trace.residuals is None else medians(trace.residuals),
    )  # fmt: skip


def medians(residuals: np.ndarray) -> np.ndarray:
    """Residuals (B, S, K) -> medians over the images that had the update (S, K), NaN where none had it."""
    found = np.full(residuals.shape[1:], np.nan, np.float32)
    made = ~np.isnan(residuals).all(0)
    found[made] = np.nanmedian(residuals[:, made], axis=0)
    return found
