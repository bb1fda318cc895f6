"""The choices of newer recipes that are compared with the paper's, one at a time, in what they cost and bring."""

import math
from typing import NamedTuple

# EDM2's draw has mean -0.4 for latents of standard deviation 0.5. Ours have about 1, and so does the noise: the same
# share of noise has twice the noise / signal.
EDM2_MEAN = round(-0.4 + math.log(2), 2)


class Choice(NamedTuple):
    """options: of train.py. tuned: the option whose best value is searched for; the learning rate of everything else is
    then the paper's recipe's best. rates: the values that are tried; () for those of all. scored: whether what it
    brings is measured too; otherwise only what it costs per step."""

    options: dict[str, object]
    tuned: str = "optim.lr"
    rates: tuple[float, ...] = ()
    scored: bool = True


def _flow(**draw: object) -> Choice:
    return Choice({"diffusion.process": "flow", **{f"diffusion.{name}": value for name, value in draw.items()}})


EPS = {"diffusion.parametrisation": "eps", "diffusion.weighting": "eps", "diffusion.zero_terminal_snr": "false"}

CHOICES = {
    "the paper's": Choice({}),
    "eps prediction": Choice(EPS),
    "flow": _flow(),
    "flow, logit-normal t": _flow(draw="logit-normal"),
    "flow, log-normal noise levels": _flow(draw="log-normal", draw_mean=EDM2_MEAN),
    "logit-normal t": Choice({"diffusion.draw": "logit-normal"}),
    "QK norm": Choice({"model.qk_norm": "true"}),
    "RMS norm": Choice({"model.norm": "rms"}),
    "SwiGLU": Choice({"model.mlp": "swiglu"}),
    "no positions": Choice({"model.positions": "none"}),
    "learned positions": Choice({"model.positions": "learned"}),
    "rotary positions": Choice({"model.positions": "rotary"}),
    "own value excluded": Choice({"model.exclude_own_value": "true"}),
    "betas 0.9, 0.95": Choice({"optim.betas": "[0.9,0.95]"}),
    "weight decay 0.1 of matrices": Choice({"optim.weight_decay": 0.1, "optim.decay": "matrices"}),
    "Muon": Choice({"optim.optimizer": "muon"}, tuned="optim.muon_lr", rates=(0.005, 0.01, 0.02)),
    # muP carries rates from one width to another, and averages do not change what is trained.
    "muP's rates": Choice({"optim.mup_base_width": 64}, scored=False),
    "three EMAs": Choice({"optim.ema_extra": "[0.99,0.999]"}, scored=False),
    "two EMA profiles": Choice({"optim.ema_profiles": "[0.05,0.1]"}, scored=False),
}
