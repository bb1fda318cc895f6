"""The forms of the fixed-point model that the ladder compares, question by question, and their opponents."""

import hashlib
from typing import NamedTuple

from fpdm.injections import INJECTIONS

Options = dict[str, object]  # of train.py


class Form(NamedTuple):
    """A network and how it is trained. config: in the data set's configs. options: further ones of train.py.

    tuned: the option that is its learning rate. rates: the values of it that are tried; () for those of the ladder.
    """

    label: str
    config: str
    options: Options
    tuned: str = "optim.lr"
    rates: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """A name for files, the same for the same options; a run's config.yaml says which they are."""
        told = sorted(self.options.items()) + ([] if self.tuned == "optim.lr" else [("tuned", self.tuned)])
        digest = hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest()
        return f"ladder-{self.config}-{digest}"

    @property
    def trains(self) -> bool:
        """False where updates without gradient would cut off what is before the loop; see `Injection.every_update`."""
        injection = INJECTIONS[self.options.get("model.injection", "mlp")]
        return injection.every_update or not self.options.get("sjfb.no_grad", 1)

    def with_options(self, label: str, more: Options) -> "Form":
        """The same with further options; None takes one away."""
        merged = {name: value for name, value in (self.options | more).items() if value is not None}
        return self._replace(label=label, options=merged)


class Rung(NamedTuple):
    """A question. forms: further options of each answer beside the best form so far, by name; the first has none. None
    takes one away."""

    question: str
    forms: dict[str, Options]


RECIPE: Options = {"diffusion.draw": "logit-normal"}  # of all: what helped both networks most in recipes.md
OPPONENTS = (
    Form("DiT, 12 blocks", "dit", RECIPE),
    Form("DiT, 6 blocks", "dit", {"model.depth": 6, **RECIPE}),
    Form("DiT, 3 blocks", "dit", {"model.depth": 3, **RECIPE}),
    Form("the paper's FPDM", "fpdm", RECIPE),
    Form("DiT, 3 blocks, uniform t", "dit", {"model.depth": 3}),  # these two tell what the recipe does
    Form("the paper's FPDM, uniform t", "fpdm", {}),
)


def early_head(number: int) -> Options:
    """A head of its own for the exit after so many block passes. Half the weight of the last exit's loss, the default,
    costs that exit some of its quality; a tenth hardly does, and with Adam the head itself learns as fast."""
    return {"model.early_head": number, "sjfb.early_head_weight": 0.1}


# What helps a looped network may help a DiT.
EXPLICIT = {
    "DiT, 12 blocks": {
        "plain": {},
        "growing": {"sjfb.grow": "[[0,4],[0.4,8],[0.65,12]]"},
        "early head": early_head(4),
    },
    "DiT, 6 blocks": {
        "plain": {},
        "growing": {"sjfb.grow": "[[0,3],[0.5,6]]"},
        "random exit": {"sjfb.supervise": "random"},
        "early head": early_head(2),
    },
    "DiT, 3 blocks": {"plain": {}, "early head": early_head(1)},
}
START = Form("3 blocks, looped", "fpdm", {
    **RECIPE,
    "model.pre_depth": 0, "model.post_depth": 0, "model.implicit_depth": 3, "model.injection": "add",
    "model.pre_post_timestep_conditioning": "true",  # of the head, or nothing after the loop would know t
    "sjfb.variant": "multi-step", "sjfb.no_grad": 0, "sjfb.grad": 4, "sjfb.grow": "[[0,1],[0.4,2],[0.65,4]]",
    "model.reuse": "false",  # for every injection: whether it helps is the last question, and needs no training
})  # fmt: skip
RUNGS = (
    Rung("blocks in the loop", {
        "3 blocks": {},
        "2 blocks": {"model.implicit_depth": 2},
        # Widths at which 2, 4, 5 and 6 blocks have as many parameters as 3 of width 128, to 3 %.
        "2 wide blocks": {"model.implicit_depth": 2, "model.hidden_size": 156},
        "4 narrow blocks": {"model.implicit_depth": 4, "model.hidden_size": 112},
        "6 narrow blocks": {"model.implicit_depth": 6, "model.hidden_size": 88},
        "2 blocks, 1 after": {"model.implicit_depth": 2, "model.post_depth": 1},
        "1 block, 1 before, 1 after": {"model.implicit_depth": 1, "model.pre_depth": 1, "model.post_depth": 1},
        "3 narrow blocks, 1 before, 1 after": {"model.pre_depth": 1, "model.post_depth": 1, "model.hidden_size": 100},
        "2 narrow blocks, 2 before, 2 after": {
            "model.implicit_depth": 2, "model.pre_depth": 2, "model.post_depth": 2, "model.hidden_size": 92},
    }),
    Rung("growth", {
        "1, 2, 4 updates": {},
        "1, 2": {"sjfb.grad": 2, "sjfb.grow": "[[0,1],[0.5,2]]"},
        "1, 2, late": {"sjfb.grad": 2, "sjfb.grow": "[[0,1],[0.75,2]]"},
        "1, 2, the first without gradient": {"sjfb.no_grad": 1, "sjfb.grad": 1, "sjfb.grow": "[[0,1],[0.5,2]]"},
        "2 from the start": {"sjfb.grad": 2, "sjfb.grow": None},
        "1 to 3, drawn": {"sjfb.variant": "stochastic", "sjfb.grad": 3, "sjfb.grow": None},
    }),
    Rung("injection", {
        "as before": {},
        **{f"`{name}`": {"model.injection": name} for name in ("mlp", "norm", "decay", "lanes", "none")},
    }),
    Rung("supervision", {
        "last": {},
        "random": {"sjfb.supervise": "random"},
        "all": {"sjfb.supervise": "all"},
        "distil": {"sjfb.supervise": "distil"},
        "early head": early_head(1),
        "random, early head": {"sjfb.supervise": "random", **early_head(1)},
    }),
    Rung("vectors for the loops", {"none": {}, "2": {"model.loop_embedding": 2}, "4": {"model.loop_embedding": 4}}),
    Rung("consistency and starts", {
        "neither": {},
        "consistency": {"sjfb.consistency": 0.1},
        "consistency, longer": {"sjfb.consistency": 0.1, "sjfb.consistency_from": 0.7},
        "other starts": {"sjfb.start": "[input,other]", "sjfb.variant": "stochastic", "sjfb.no_grad": 2},
    }),
)  # fmt: skip
