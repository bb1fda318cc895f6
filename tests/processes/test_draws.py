"""How training draws timesteps, against the distributions' own definitions."""

import math

import pytest
import torch
from scipy import stats

from fpdm.config import DiffusionConfig
from fpdm.processes import Diffusion, Flow
from fpdm.processes.draws import TimestepDraw, draw_timesteps

COUNT = 20_000


def drawn(process) -> torch.Tensor:
    return draw_timesteps(process, COUNT, torch.Generator().manual_seed(0), torch.device("cpu"))


def test_uniform_timesteps_are_as_before():
    """The bits of runs that were started before there was a choice."""
    expected = torch.randint(1000, (COUNT,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(Diffusion()), expected)


def test_uniform_times():
    assert stats.kstest(drawn(Flow()).numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.4, 1.5)])
def test_logit_normal_times(mean, deviation):
    t = drawn(Flow(draw="logit-normal", draw_mean=mean, draw_deviation=deviation)).double()
    assert stats.kstest((t / (1 - t)).log().numpy(), "norm", (mean, deviation)).pvalue > 0.01
    discrete = drawn(Diffusion(draw="logit-normal", draw_mean=mean, draw_deviation=deviation))
    for timestep in (50, 250, 500, 750, 950):  # P(timestep < k) is that of a share below k / 1000
        share = stats.norm.cdf(math.log(timestep / (1000 - timestep)), mean, deviation)
        assert float((discrete < timestep).float().mean()) == pytest.approx(share, abs=0.012)  # 3.4 deviations


@pytest.mark.parametrize("process", ["flow", "discrete"])
def test_log_normal_noise_levels(process):
    """ln(noise / signal) is normal; over discrete timesteps, up to the distance between two of them."""
    settings = {"draw": "log-normal", "draw_mean": -0.4, "draw_deviation": 1.2}
    made = Flow(**settings) if process == "flow" else Diffusion(**settings)
    levels = [made.level(float(t)) for t in drawn(made)[:4000]]
    values = [math.log(level.noise / max(level.signal, 1e-12)) for level in levels]
    statistic = stats.kstest(values, "norm", (-0.4, 1.2)).statistic
    assert statistic < 0.03


@pytest.mark.parametrize("mean", [-200.0, 95.0])
def test_far_noise_levels_are_image_or_noise(mean):
    """Noise / signal is 0 or infinite in float32."""
    settings = {"draw": "log-normal", "draw_mean": mean}
    assert drawn(Flow(**settings)).unique().tolist() == [float(mean > 0)]
    assert drawn(Diffusion(**settings)).unique().tolist() == [999 * (mean > 0)]


@pytest.mark.parametrize("settings", [{"draw_mean": 95.0}, {"draw_mean": -10.5}, {"draw_deviation": 11.0}])
def test_draws_far_beyond_the_process_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"diffusion\.{name}=.*: .*at most 10"):
        DiffusionConfig(draw="log-normal", **settings)


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (TimestepDraw("beta"), "draw='beta': choose one of uniform, logit-normal, log-normal"),
        (TimestepDraw("logit-normal", 0.0, 0.0), "draw_deviation=0.0: must be positive"),
        (TimestepDraw("uniform", 0.5), "draw_mean=0.5, draw_deviation=1.0 with draw=uniform"),
    ],
)
def test_bad_draws_are_refused(draw, says):
    with pytest.raises(ValueError, match=says):
        draw.check()
