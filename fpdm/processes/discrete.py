"""The diffusion process over discrete timesteps (Ho et al., 2020), the paper's.

Tables are computed in float64 and used in float32. B batch, C channels, H height and width,
T number of timesteps, ab the cumulative product alpha_bar, SNR = ab / (1 - ab).
"""

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from fpdm.processes.draws import TimestepDraw
from fpdm.processes.level import Level
from fpdm.processes.losses import (
    Losses,
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    interpolate_log_variance,
)
from fpdm.processes.schedule import (
    SCHEDULES,
    posterior_tables,
    rescale_to_zero_terminal_snr,
    schedule_betas,
)
from fpdm.processes.times import MOST_STEPS, DiscreteTimes
from fpdm.weightings import WEIGHTINGS, is_learned

PARAMETRISATIONS = ("v", "eps", "x0")
PURE_NOISE = 1e-20  # replaces alpha_bar = 0 where its logarithm is needed


class Diffusion:
    """Schedule, parametrisation and losses of one model; its tables are its only state.

    schedule: linear (betas), scaled-linear (square roots of betas) or cosine.
    parametrisation: what the network predicts: v = sqrt(ab) eps - sqrt(1 - ab) x0, eps or x0.
    zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al., 2023).
    learn_sigma: the second half of the prediction's channels is the variance, trained by the
        variational bound with the mean detached (Nichol & Dhariwal, 2021).
    weighting: weighting of the squared error, a name in fpdm.weightings. Only `losses` needs it, so a model
        trained with a weighting that does not exist here can still be sampled.
    min_snr_gamma: upper limit of the SNR in `min-snr`.
    draw, draw_mean, draw_deviation: how training draws timesteps, see fpdm.processes.draws.
    """

    kind = "discrete"
    clean = Level(alpha_bar=1.0, signal=1.0, noise=0.0, place=0.0, signal_slope=0.0, noise_slope=1.0)

    def __init__(
        self,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        timesteps: int = 1000,
        parametrisation: str = "v",
        zero_terminal_snr: bool = True,
        learn_sigma: bool = True,
        weighting: str = "v",
        min_snr_gamma: float = 5.0,
        draw: str = "uniform",
        draw_mean: float = 0.0,
        draw_deviation: float = 1.0,
    ):
        _check_choice("schedule", schedule, SCHEDULES)
        _check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
        if parametrisation == "eps" and zero_terminal_snr:
            raise ValueError(
                "parametrisation='eps' with zero_terminal_snr=true: at the last timestep x_t is the noise itself, "
                "so eps says nothing about the image; predict 'v' or 'x0', or set zero_terminal_snr: false"
            )
        if not 2 <= timesteps <= MOST_STEPS:
            raise ValueError(f"timesteps={timesteps}: at least 2, at most {MOST_STEPS:,}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start={beta_start}, beta_end={beta_end}: need 0 < beta_start <= beta_end < 1")
        if not 0 < min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma={min_snr_gamma}: must be positive and finite")
        self.timestep_draw = TimestepDraw(draw, draw_mean, draw_deviation)
        self.timestep_draw.check()
        self.timesteps = timesteps
        self.parametrisation = parametrisation
        self.learn_sigma = learn_sigma
        self.weighting = weighting
        alphas_cumprod = np.cumprod(1 - schedule_betas(schedule, beta_start, beta_end, timesteps))
        if zero_terminal_snr:
            alphas_cumprod = rescale_to_zero_terminal_snr(alphas_cumprod)
        self.alphas_cumprod = alphas_cumprod
        self.betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        posterior = posterior_tables(alphas_cumprod)
        sigmas = np.sqrt((1 - alphas_cumprod) / np.maximum(alphas_cumprod, PURE_NOISE))
        self._tables = {
            "signal": np.sqrt(alphas_cumprod),
            "noise": np.sqrt(1 - alphas_cumprod),
            "between_sigmas": np.sqrt(sigmas[1:] * sigmas[:-1]),  # between a timestep's noise / signal and the next's
            **posterior._asdict(),
        }
        if weighting in WEIGHTINGS:
            self._tables["weight"] = loss_weights(weighting, parametrisation, alphas_cumprod, min_snr_gamma)
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def predicts(self) -> str:
        """What the network predicts: its parametrisation."""
        return self.parametrisation

    def _table(self, name: str, device: torch.device) -> Tensor:
        """A table in float32, copied to the device once."""
        if (name, device) not in self._on_device:
            self._on_device[name, device] = torch.tensor(self._tables[name], dtype=torch.float32, device=device)
        return self._on_device[name, device]

    def _at(self, name: str, t: Tensor) -> Tensor:
        """Entries t (B,) of a table, (B, 1, 1, 1) float32 on t's device."""
        return self._table(name, t.device)[t][:, None, None, None]

    def times(self, shift: float = 1.0) -> DiscreteTimes:
        """What sampling can visit; ValueError for a shift, which only continuous time has."""
        if shift != 1:
            raise ValueError(f"shift={shift}: discrete timesteps have no shift; leave it out, or train a flow")
        return DiscreteTimes(self.timesteps)

    def level(self, t: float) -> Level:
        """The noise level at timestep t; between two timesteps, alpha_bar is interpolated."""
        alpha_bar = float(np.interp(t, np.arange(self.timesteps), self.alphas_cumprod))
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        return Level(alpha_bar, signal, noise, math.acos(signal), -noise, signal)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network sees of timesteps t (B,): themselves."""
        return t

    def uniform(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Uniform timesteps (count,) int64."""
        return torch.randint(self.timesteps, (count,), generator=generator, device=device)

    def at_sigma(self, sigma: Tensor) -> Tensor:
        """Timesteps (B,) int64 whose noise / signal is nearest to these values (B,), in logarithm."""
        return torch.bucketize(sigma, self._table("between_sigmas", sigma.device))

    def at_share(self, share: Tensor) -> Tensor:
        """Timesteps (B,) int64 at these shares of the time, 0 to 1."""
        return (share * self.timesteps).long().clamp_max(self.timesteps - 1)

    def part(self, t: Tensor, parts: int) -> Tensor:
        """Number (B,) of the part, out of so many equal ones, in which each timestep is."""
        return t * parts // self.timesteps

    def cleaner(self, t: Tensor, gap: Tensor) -> Tensor:
        """Timesteps (B,) that are nearer to the image by these shares (B,) of all timesteps, 0 at least."""
        return (t - (gap * self.timesteps).round().long()).clamp_min(0)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(ab) x0 + sqrt(1 - ab) noise; all (B, C, H, W), t (B,)."""
        return self._at("signal", t) * x0 + self._at("noise", t) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict (B, C, H, W)."""
        if self.parametrisation == "eps":
            return noise
        if self.parametrisation == "x0":
            return x0
        return self._at("signal", t) * noise - self._at("noise", t) * x0

    def split(self, prediction: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prediction (B, 2C, H, W) -> mean part and variance part (B, C, H, W); the latter None if not learned."""
        return prediction.chunk(2, dim=1) if self.learn_sigma else (prediction, None)

    def x0_and_eps(self, mean: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Predicted clean latent and noise from the mean part, both (B, C, H, W).

        Neither divides by sqrt(ab) except for eps-prediction, where ab > 0.
        """
        signal, noise = level.signal, level.noise
        if self.parametrisation == "eps":
            return (x - noise * mean) / signal, mean
        if self.parametrisation == "x0":
            return mean, (x - signal * mean) / noise
        return signal * x - noise * mean, signal * mean + noise * x

    def mean_of(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """The mean part that predicts the clean latent x0 at x: the inverse of `x0_and_eps`."""
        signal, noise = level.signal, level.noise
        if self.parametrisation == "x0":
            return x0
        if self.parametrisation == "eps":
            return (x - signal * x0) / noise
        return (signal * x - x0) / noise

    def losses(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Losses:
        """Per-sample losses (B,) of a prediction (B, C or 2C, H, W) made from add_noise(x0, noise, t)."""
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        expected = x0.shape[1] * (2 if self.learn_sigma else 1)
        if prediction.shape[1] != expected:
            raise ValueError(
                f"prediction has {prediction.shape[1]} channels, learn_sigma={self.learn_sigma} and "
                f"{x0.shape[1]} latent channels need {expected}"
            )
        mean, variance = self.split(prediction.float())
        error = (mean - self.target(x0, noise, t)).square()
        mse = (self._at("weight", t) * error).flatten(1).mean(1)
        if variance is None:
            return Losses(mse, mse, torch.zeros_like(mse))
        vb = self._variational_bound(mean.detach(), variance, x0, self.add_noise(x0, noise, t), t)
        return Losses(mse + vb, mse, vb)

    def distance(self, prediction: Tensor, other: Tensor, t: Tensor) -> Tensor:
        """Squared distance (B,) between the mean parts of two predictions (B, C or 2C, H, W), weighted as the loss."""
        mean, _ = self.split(prediction.float())
        target, _ = self.split(other.float())
        return (self._at("weight", t) * (mean - target).square()).flatten(1).mean(1)

    def _variational_bound(self, mean: Tensor, variance: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_prev | x_t, x0) || p(x_prev | x_t)) in bits per dimension; the decoder's likelihood at t = 0."""
        predicted_x0 = self._predicted_x0(mean, x, t)
        mean_x0, mean_x = self._at("mean_x0", t), self._at("mean_x", t)
        true_mean, model_mean = mean_x0 * x0 + mean_x * x, mean_x0 * predicted_x0 + mean_x * x
        true_log_variance = self._at("log_variance_min", t)
        log_variance = interpolate_log_variance(variance, true_log_variance, self._at("log_variance_max", t))
        kl = gaussian_kl(true_mean, true_log_variance, model_mean, log_variance)
        nll = -discretised_gaussian_log_likelihood(x0, model_mean, 0.5 * log_variance)
        return torch.where((t == 0)[:, None], nll.flatten(1), kl.flatten(1)).mean(1) / math.log(2)

    def _predicted_x0(self, mean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        signal, noise = self._at("signal", t), self._at("noise", t)
        if self.parametrisation == "eps":
            return (x - noise * mean) / signal
        return mean if self.parametrisation == "x0" else signal * x - noise * mean


def loss_weights(weighting: str, parametrisation: str, alphas_cumprod: np.ndarray, gamma: float) -> np.ndarray:
    """Weights (T,) of the squared error of the *predicted* quantity.

    A weighting gives weights of the x0 error. The x0 error is the prediction's error times d = (dx0 / dprediction)**2,
    so its weights are multiplied by d. A learned weighting starts from the plain error: its weights are 1.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if is_learned(weighting) or parametrisation == weighting:
        return np.ones_like(snr)  # exact, also where the ratio below would be 0 / 0
    d = {"v": 1 - alphas_cumprod, "x0": np.ones_like(snr)}
    on_x0 = WEIGHTINGS[weighting](alphas_cumprod, gamma)
    return on_x0 * (1 / snr if parametrisation == "eps" else d[parametrisation])


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r:.100}: choose one of {', '.join(choices)}")
