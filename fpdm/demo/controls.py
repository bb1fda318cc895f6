"""The controls of the page. Their choices, defaults and explanations are those of SamplingConfig."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import gradio as gr
from gradio.components import Component

from fpdm.demo.models import Offered
from fpdm.demo.request import DEFAULTS, RANDOM, Bounds, unavailable
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import SOLVERS

IMAGES, BUDGET = 16, 60  # at the beginning
GUIDANCE = 8  # end of the slider


class SharedControls(NamedTuple):
    """The controls of a `Shared`."""

    label: Component
    images: Component
    seed: Component
    budget: Component


class WayControls(NamedTuple):
    """The controls of a `Way`."""

    model: Component
    iterations: Component
    allocation: Component
    reuse: Component
    reuse_weight: Component
    sampler: Component
    cfg_scale: Component


def about(name: str) -> str:
    """The first words of the explanation of a sampling setting; nothing under python -OO, which has none."""
    found = re.search(rf"^ +{name}: (.*?)(?:[;:.(]|\Z)", SamplingConfig.__doc__ or "", re.MULTILINE | re.DOTALL)
    words = " ".join(found[1].split()) if found else ""
    return words[:1].upper() + words[1:]


def budget_control(models: Mapping[str, Offered], bounds: Bounds) -> Component:
    """The dial, from the cheapest model call on."""
    least = min(offered.source.cost.blocks(1) for offered in models.values())
    return gr.Slider(least, bounds.budget, BUDGET, step=1, label="Budget", info=about("budget"), elem_id="budget")


def shared_controls(offered: Offered, bounds: Bounds, budget: Component) -> SharedControls:
    """offered: the model that is chosen at the beginning."""
    label = gr.Dropdown(classes(offered), value=RANDOM, label="Class")
    images = gr.Slider(1, bounds.images, min(IMAGES, bounds.images), step=1, label="Images")
    seed = gr.Number(DEFAULTS["seed"], label="Seed", info=about("seed"), precision=0, minimum=0)
    return SharedControls(label, images, seed, budget)


def classes(offered: Offered) -> list[tuple[str, str | int]]:
    """Choices of a class, by name."""
    return [("random", RANDOM), *((name, label) for label, name in enumerate(offered.class_names))]


def way_controls(
    models: Mapping[str, Offered], name: str, bounds: Bounds, iterations: int, which: str = ""
) -> WayControls:
    """The controls of one side. name: of the model at the beginning. which: what their labels end with."""
    source = models[name].source
    return WayControls(
        gr.Dropdown(list(models), value=name, label=f"Model{which}"),
        gr.Slider(1, bounds.iterations, iterations, step=1, label=f"Iterations{which}"),
        gr.Dropdown(listed(ALLOCATIONS), value=DEFAULTS["allocation"], label=f"Allocation{which}"),
        gr.Checkbox(source.reuses(None), label=f"Reuse solutions{which}"),
        gr.Slider(0.05, 1, DEFAULTS["reuse_weight"], step=0.05, label=f"Reuse weight{which}"),
        gr.Dropdown(listed(SOLVERS), value=DEFAULTS["sampler"], label=f"Sampler{which}"),
        gr.Slider(1, GUIDANCE, DEFAULTS["cfg_scale"], step=0.5, label=f"Guidance{which}"),
    )


def listed(choices: Mapping[str, NamedTuple]) -> list[tuple[str, str]]:
    """Choices with what they are about."""
    return [(f"{name}: {choice.about}", name) for name, choice in choices.items()]


def greyed_out(offered: Offered, iterations: int, reuse: bool) -> list[dict]:
    """Updates of a side's controls but the model's: what cannot be set is inactive, and says why."""
    reasons = unavailable(offered.source, iterations, reuse)
    return [
        gr.update(interactive=name not in reasons, info=reasons.get(name) or about(name))
        for name in WayControls._fields[1:]
    ]
