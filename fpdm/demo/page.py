"""The page: controls on one side, what was drawn on the other, and what happens when a control is moved."""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import gradio as gr
from gradio.components import Component
from starlette.middleware import Middleware

from fpdm.demo import markup
from fpdm.demo.controls import (
    SharedControls,
    WayControls,
    budget_control,
    classes,
    greyed_out,
    shared_controls,
    way_controls,
)
from fpdm.demo.drawing import Drawing, Stopped, Studio
from fpdm.demo.gate import Gate
from fpdm.demo.models import Offered
from fpdm.demo.request import RANDOM, Asked, Bounds, Shared, Way, ask, truth
from fpdm.demo.style import CSS, theme
from fpdm.sampling.allocation import DEFAULT_ITERATIONS

logger = logging.getLogger("fpdm")
TITLE = "FPDM: turn the dial"
ABOUT = "One network, any budget: move a control, and it draws again."
OPEN_TABS = 200  # of which the server keeps something; beyond it forgets the oldest
LATE = 1.0  # seconds after a cancelled drawing in which requests may arrive that were made before the cancellation
CANCELLED = "Cancelled."
REFRESH = 0.1  # seconds between two looks at the progress
IN_ALL = len(Shared._fields)
IN_WAY = len(Way._fields)


class Tab:
    """What the server knows of one tab: what is being drawn, when that was cancelled, and what was drawn last."""

    def __init__(self):
        self.drawing: Drawing | None = None
        self.results = ""
        self._cancelled = -math.inf

    def cancel(self) -> None:
        """Stop what is being drawn, and what the browser asked for meanwhile and sends when it learns of the end."""
        self._cancelled = time.monotonic()
        if self.drawing is not None:
            self.drawing.stop()

    @property
    def cancelled(self) -> bool:
        """Whether a request that arrives now is older than the cancellation."""
        return time.monotonic() - self._cancelled < LATE


class Handlers:
    """What the events of the page call."""

    def __init__(self, models: Mapping[str, Offered], bounds: Bounds, queue: int):
        self.models, self.bounds, self.studio = models, bounds, Studio(queue)

    def draw(self, tab: Tab, *values) -> Iterator[str]:
        """The status, again and again until the results are there. values: Shared, compare, first Way, second.

        `show` has the results. If they were an output here that is left as it is while the status changes, Gradio would
        make a new component for the tab each time, and keep it.
        """
        if tab.cancelled:
            yield markup.message(CANCELLED)
            return
        try:
            sides = self.sides(values)
            drawing = tab.drawing = self.studio.begin(sides)
        except ValueError as error:
            yield markup.message(str(error), error=True)
            return
        try:
            while (drawn := drawing.wait(REFRESH)) is None:
                yield markup.progress(drawing.progress, len(sides))
            tab.results = markup.results(drawn)
            yield markup.message("Done.")
        except Stopped:
            tab.cancel()  # what the browser asked for meanwhile arrives after this
            yield markup.message(CANCELLED)
        except Exception:  # a visitor sees one line, and the page goes on
            logger.exception("a drawing failed")
            yield markup.message("This could not be drawn; the server's log says why.", error=True)
        finally:
            drawing.stop()

    def show(self, tab: Tab) -> str:
        """What was drawn last for this tab."""
        return tab.results

    def sides(self, values: Sequence) -> list[Asked]:
        """The checked requests; one ValueError if anything is wrong."""
        shared, compare = Shared(*values[:IN_ALL]), values[IN_ALL]
        ways = [Way(*values[i : i + IN_WAY]) for i in (IN_ALL + 1, IN_ALL + 1 + IN_WAY)]
        return [ask(self.models, shared, way, self.bounds) for way in (ways if truth("compare", compare) else ways[:1])]

    def cancel(self, tab: Tab) -> str:
        """Stop what is being drawn for this tab."""
        tab.cancel()
        return markup.message(CANCELLED)

    def classes_of(self, model: str, label: str | int) -> dict:
        """The classes of another model; the label stays if it has it."""
        offered = self.models[model]
        known = label != RANDOM and label < len(offered.class_names)
        return gr.update(choices=classes(offered), value=label if known else RANDOM)

    def reuse_of(self, model: str) -> bool:
        """Whether another model reuses solutions by default."""
        return self.models[model].source.reuses(None)

    def grey(self, model: str, iterations: int, reuse: bool) -> list[dict]:
        return greyed_out(self.models[model], iterations, reuse)


class Parts(NamedTuple):
    """The parts of the page that take part in its events."""

    tab: gr.State
    shared: SharedControls
    compare: Component
    group: gr.Column
    first: WayControls
    second: WayControls
    draw: gr.Button
    cancel: gr.Button
    status: gr.HTML
    results: gr.HTML


def build(models: Mapping[str, Offered], bounds: Bounds, queue: int) -> gr.Blocks:
    """The page for these models. queue: drawings that may wait; more are refused."""
    handlers = Handlers(models, bounds, queue)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        connect(page, lay_out(models, bounds), handlers)
    page.queue(max_size=None)  # the studio has the only queue: a drawing that waits there can be cancelled at once
    return page


def lay_out(models: Mapping[str, Offered], bounds: Bounds) -> Parts:
    """Place the parts: on a narrow screen, the dial and the images come before the other controls."""
    names = list(models)
    gr.HTML(f"<h1>{TITLE}</h1><p>{ABOUT}</p>")
    with gr.Row(elem_id="main"):
        with gr.Column(scale=3, min_width=320):
            budget = budget_control(models, bounds)
            with gr.Row(elem_id="buttons"):
                draw, cancel = gr.Button("Draw", variant="primary"), gr.Button("Cancel")
            status, results = gr.HTML(elem_id="status"), gr.HTML(elem_id="results")
        with gr.Column(scale=1, min_width=300, elem_id="settings"):
            shared = shared_controls(models[names[0]], bounds, budget)
            first = way_controls(models, names[0], bounds, DEFAULT_ITERATIONS)
            compare = gr.Checkbox(False, label="Compare with a second setting")
            with gr.Column(visible=False) as group:
                second = way_controls(models, names[0], bounds, 1, " (second)")
    return Parts(gr.State(Tab()), shared, compare, group, first, second, draw, cancel, status, results)


def connect(page: gr.Blocks, parts: Parts, handlers: Handlers) -> None:
    """Say what happens when the page opens, a control is moved, or a button is pressed."""
    shared, ways = parts.shared, (parts.first, parts.second)
    # These are also set by the page itself, when another model is chosen: `input` is an event of the visitor alone.
    set_by_page = [shared.label, *(way.reuse for way in ways)]
    controls = [*shared, parts.compare, *parts.first, *parts.second]
    moved = [control.change if control in set_by_page else control.input for control in controls]
    drawing = gr.on(
        [page.load, parts.draw.click, *moved],
        handlers.draw,
        [parts.tab, *controls],
        parts.status,
        preprocess=False,  # `ask` checks every value, and says in one line what is wrong
        trigger_mode="always_last",
        concurrency_limit=None,
        show_progress="hidden",
        api_name="draw",
    )
    drawing.then(handlers.show, parts.tab, parts.results, queue=False, show_progress="hidden", api_name="results")
    private = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    parts.cancel.click(handlers.cancel, parts.tab, parts.status, **private)
    parts.compare.input(lambda on: gr.update(visible=on), parts.compare, parts.group, **private)
    parts.first.model.input(handlers.classes_of, [parts.first.model, shared.label], shared.label, **private)
    for way in ways:
        way.model.input(handlers.reuse_of, way.model, way.reuse, **private)
        gr.on(
            [page.load, way.model.input, way.iterations.input, way.reuse.change],
            handlers.grey,
            [way.model, way.iterations, way.reuse],
            list(way[1:]),
            **private,
        )


def serve(page: gr.Blocks, host: str, port: int, share: bool = False) -> str:
    """Start to serve the page, in threads of its own; returns its address. OSError if the port is taken."""
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # no drawing stays in the browser; old versions of Gradio keep none
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css=CSS,
        app_kwargs={"middleware": [Middleware(Gate)]},
        blocked_paths=["/"],
        max_file_size=1,
        state_session_capacity=OPEN_TABS,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
    )
    return page.share_url or page.local_url
