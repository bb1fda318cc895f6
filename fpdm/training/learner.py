"""What learns: the network, a learned weighting, their averages, the optimizer and the loss scaler."""

import math
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fpdm.config import ExperimentConfig
from fpdm.devices import skips_by_flag
from fpdm.models import Denoiser, compile_layers, load_weights
from fpdm.training.checkpoint import damaged_trainer
from fpdm.training.ema import make_averages
from fpdm.training.objective import Objective, average_gradients
from fpdm.training.optimizers import make_optimizer, parameter_groups, set_options, set_rates
from fpdm.training.step_loss import without_gradients


class Learner:
    """Everything that a step changes.

    network: trained; model: the same as it must be called, wrapped for several processes and for the precision.
    averages: of the network, by the names of their folders in a checkpoint; the first is `ema`.
    """

    def __init__(self, config: ExperimentConfig, network: Denoiser, objective: Objective, accelerator: Accelerator):
        """Moves the network and the objective to their device, and compiles the former if the config asks for it."""
        self.optim, self.accelerator, self.network, self.objective = config.optim, accelerator, network, objective
        network.to(accelerator.device)
        objective.to(accelerator.device)
        self.averages = make_averages(self.optim, network)
        if config.run.compile:
            compile_layers(network)
        self._trained = [*network.parameters(), *objective.parameters()]
        self._groups = parameter_groups(self.optim, network, objective.parameters())
        self._bare = make_optimizer(self.optim, self._groups)  # takes the flag that accelerate's wrapper does not know
        self._by_flag = skips_by_flag(accelerator.device) and self.optim.optimizer == "adamw"
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "broadcast_buffers is deprecated", FutureWarning
            )  # accelerate still uses this name
            self.model, self._optimizer = accelerator.prepare(network, self._bare)

    @property
    def ema(self) -> nn.Module:
        """The average to sample from."""
        return self.averages["ema"].model

    @property
    def weights(self) -> dict[str, Denoiser]:
        """The network and its averages, by the names of their folders in a checkpoint."""
        return {"model": self.network} | {name: average.model for name, average in self.averages.items()}

    def state(self) -> dict:
        """What a checkpoint holds besides the weights."""
        scaler = self.accelerator.scaler
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def restore(self, state: dict, checkpoint: Path) -> None:
        """Continue from the weights in a checkpoint and from its `state`, with the options of the config."""
        for name, model in self.weights.items():
            load_weights(model, checkpoint / name)
        self.objective.restore(state.get("objective", {}), checkpoint)  # older checkpoints have none
        with damaged_trainer(checkpoint):
            self._optimizer.load_state_dict(state["optimizer"])
            set_options(self._optimizer, self._groups, self.optim)  # from the config, which may have changed
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])

    def begin(self, rate: float) -> None:
        """Before the first backward pass of a step. rate: the learning rate."""
        set_rates(self._optimizer, self._groups, rate)
        # With DDP, gradients must stay in its buckets.
        self._optimizer.zero_grad(set_to_none=self.accelerator.num_processes == 1)

    def update(self, step: int, unused: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
        """Step the optimizer and the averages, unless a gradient is not finite; then only the averages.

        unused: parameters that this step leaves alone. Returns the norm of the gradients before clipping, and whether
        it is finite, () each on the device.
        """
        average_gradients(self.accelerator, self.objective)
        norm = self.accelerator.clip_grad_norm_(self._trained, self.optim.clip_norm or math.inf)
        finite = torch.isfinite(norm)
        scaled = self.accelerator.scaler is not None  # a scaler skips by itself
        # A non-finite step is skipped on the device, if it can be: the host does not wait for the result.
        if self._by_flag and not scaled:
            self._bare.found_inf = (~finite).float()
        if scaled or self._by_flag or finite:
            with without_gradients(unused):
                self._optimizer.step()
        for average in self.averages.values():
            average.update(self.network, step)
        return norm, finite
