"""The optimizer: which parameters are trained by which method, at which rate, and with which decay.

Matrices are the weights of linear maps and of the patch embedding. All else is biases, norms, embeddings, positions and
the scalars of injections.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from fpdm.config import OptimConfig
from fpdm.config.optim import MUON_LR
from fpdm.lr_schedules import LR_SCHEDULES, cooldown_share
from fpdm.models import Denoiser

MUON_MOMENTUM = 0.95
INPUT_MAPS = ("x_embedder.", "y_embedder.mlp.0.", "t_embedder.mlp.0.")  # their inputs do not grow with the width


class Group(NamedTuple):
    """Parameters that are trained alike.

    muon: by Muon, otherwise by AdamW. factor: their learning rate as a multiple of optim.lr's. decayed: whether
    optim.weight_decay applies to them.
    """

    parameters: list[nn.Parameter]
    muon: bool
    factor: float
    decayed: bool

    @property
    def state_bytes(self) -> int:
        """Of the optimizer's state: Muon keeps one number per weight, AdamW two."""
        return (1 if self.muon else 2) * sum(p.numel() * p.element_size() for p in self.parameters)


def parameter_groups(optim: OptimConfig, network: Denoiser, others: Iterable[nn.Parameter] = ()) -> list[Group]:
    """All parameters of the network, and others that are trained with it, in groups; those of AdamW come first.

    By default there is one group, in the order of `network.parameters()`. ValueError for an optimizer that this torch
    does not have, or that has nothing to train in this network.
    """
    check_optimizer(optim)
    matrices = {id(module.weight) for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    inputs = {id(p) for name, p in network.named_parameters() if name.startswith(INPUT_MAPS)}
    by_muon = muon_matrices(network) if optim.optimizer == "muon" else set()
    if optim.optimizer == "muon" and not by_muon:
        raise ValueError(
            "optim.optimizer=muon: the network has no blocks, and so no matrices for it; set optim.optimizer to adamw, "
            "or model.depth to at least 1"
        )
    width = network.final_layer.linear.in_features
    width_ratio = (optim.mup_base_width or width) / width

    groups: dict[tuple, list[nn.Parameter]] = {}
    for parameter in [*network.parameters(), *others]:
        one = id(parameter)
        factor = width_ratio if one in matrices - inputs else 1.0
        if one in by_muon:
            factor = (optim.muon_lr or MUON_LR) / optim.lr
        decayed = optim.decay == "all" or one in matrices
        groups.setdefault((one in by_muon, factor, decayed), []).append(parameter)
    return [Group(groups[kind], *kind) for kind in sorted(groups, key=lambda kind: kind[0])]


def muon_matrices(network: Denoiser) -> set[int]:
    """Ids of the matrices of the blocks and of the implicit layer, without the modulations'.

    Muon's author applies it to hidden matrices, and AdamW to embeddings, the output and all that is no matrix (Jordan
    et al., 2024). Modulations are left to AdamW too: they map the conditioning, of which a batch holds few directions,
    and Muon would make the same step in all of them.
    """
    return {
        id(module.weight)
        for layer in network.layers()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and "adaLN_modulation" not in name
    }


def check_optimizer(optim: OptimConfig) -> None:
    """ValueError if this torch does not have the optimizer."""
    if optim.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optim.optimizer=muon: torch {torch.__version__} does not have it; install torch 2.9 or newer, or set "
            "optim.optimizer to adamw"
        )


def make_optimizer(optim: OptimConfig, groups: list[Group]) -> Optimizer:
    """The optimizer of these groups."""
    lists = {muon: [{"params": group.parameters} for group in groups if group.muon == muon] for muon in (False, True)}
    optimizer = torch.optim.AdamW(lists[False], lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    if optim.optimizer == "muon":
        optimizer = MuonWithAdamW(torch.optim.Muon(lists[True], momentum=MUON_MOMENTUM), optimizer)
    set_options(optimizer, groups, optim)
    set_rates(optimizer, groups, optim.lr)
    return optimizer


class MuonWithAdamW(Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimizer with one state.

    accelerate updates the loss scaler's scale after each optimizer's step, so it must see only one. Muon cannot skip a
    step by a flag on the device, so the host must decide.
    """

    def __init__(self, muon: Optimizer, adamw: Optimizer):
        self.muon, self.adamw = muon, adamw
        super().__init__([*adamw.param_groups, *muon.param_groups], {})
        self._share()

    def __setstate__(self, state: dict) -> None:
        """`load_state_dict` ends here, with a new state and new groups."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let both work on this optimizer's state and groups."""
        self.muon.state = self.adamw.state = self.state
        first = len(self.adamw.param_groups)
        self.adamw.param_groups, self.muon.param_groups = self.param_groups[:first], self.param_groups[first:]

    def step(self, closure: None = None) -> None:
        self.adamw.step()
        self.muon.step()


def set_options(optimizer: Optimizer, groups: list[Group], optim: OptimConfig) -> None:
    """Set all that a resumed run may change, but the rates."""
    for options, group in zip(optimizer.param_groups, groups, strict=True):
        options["weight_decay"] = optim.weight_decay if group.decayed else 0.0
        if not group.muon:
            options.update(betas=tuple(optim.betas), eps=optim.eps)


def set_rates(optimizer: Optimizer, groups: list[Group], rate: float) -> None:
    """Set the learning rates. rate: that of `learning_rate`, which is right for groups with factor 1."""
    for options, group in zip(optimizer.param_groups, groups, strict=True):
        options["lr"] = rate * group.factor


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate at `step` (0 is the first). It depends on the step only, not on the number of processes."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if step >= optim.steps - optim.cooldown:
        return optim.lr * cooldown_share((step + optim.cooldown - optim.steps) / optim.cooldown)
    done = (step - optim.warmup) / max(optim.steps - optim.warmup, 1)
    return optim.lr * LR_SCHEDULES[optim.lr_schedule](done)
