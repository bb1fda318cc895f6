import math

import numpy as np
import pytest
import torch

from fpdm.processes import Diffusion
from fpdm.processes.discrete import PARAMETRISATIONS, loss_weights
from fpdm.processes.schedule import SCHEDULES
from fpdm.weightings import WEIGHTINGS

RECORDED = {
    "eps": {"parametrisation": "eps", "zero_terminal_snr": False, "weighting": "eps"},
    "v_zsnr": {"parametrisation": "v", "zero_terminal_snr": True, "weighting": "p2"},
}
# Ours, as weights of the squared error of x0; a fork may have others.
X0_WEIGHTS = {
    "v": lambda ab: ab / (1 - ab) + 1,
    "eps": lambda ab: ab / (1 - ab),
    "x0": lambda ab: 1,
    "min-snr": lambda ab: min(ab / (1 - ab), 5),
    "p2": lambda ab: ab / (1 - ab) * (1 - ab) ** 0.5,
}


@pytest.fixture(params=RECORDED)
def case(request, recorded):
    data = recorded("diffusion")
    values = {key.split("/")[1]: value for key, value in data.items() if key.startswith(f"{request.param}/")}
    return Diffusion(**RECORDED[request.param]), values


def test_tables(case):
    diffusion, values = case
    np.testing.assert_allclose(diffusion.betas, values["betas"].numpy(), atol=1e-12)
    np.testing.assert_allclose(diffusion.alphas_cumprod, values["alphas_cumprod"].numpy(), atol=1e-12)
    assert diffusion.alphas_cumprod.dtype == np.float64


def test_noising(case):
    diffusion, values = case
    x_t = diffusion.add_noise(values["x0"], values["noise"], values["t"])
    torch.testing.assert_close(x_t, values["x_t"], atol=1e-5, rtol=0)


def test_losses(case):
    diffusion, values = case
    losses = diffusion.losses(values["model_out"], values["x0"], values["noise"], values["t"])
    for ours, name in zip(losses, ("loss_loss", "loss_mse", "loss_vb"), strict=True):
        torch.testing.assert_close(ours, values[name], atol=1e-5, rtol=1e-5)


def test_predicted_x0(case):
    diffusion, values = case
    mean, _ = diffusion.split(values["model_out"])
    for i, t in enumerate(values["t"].tolist()):
        row = slice(i, i + 1)
        x0, eps = diffusion.x0_and_eps(mean[row], values["x_t"][row], diffusion.level(t))
        expected = values["p_pred_xstart"][row]
        torch.testing.assert_close(x0, expected, atol=1e-5, rtol=1e-5)
        again = diffusion.alphas_cumprod[t] ** 0.5 * x0 + (1 - diffusion.alphas_cumprod[t]) ** 0.5 * eps
        torch.testing.assert_close(again, values["x_t"][row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("weighting", X0_WEIGHTS)
def test_perfect_prediction_has_no_error_and_weights_are_those_of_the_x0_error(parametrisation, weighting):
    diffusion = Diffusion(
        parametrisation=parametrisation, zero_terminal_snr=False, weighting=weighting, learn_sigma=False
    )
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double().unbind()
    x0, noise = x0.float(), noise.float()
    t = torch.tensor([0, 100, 400, 700, 950])
    target = diffusion.target(x0, noise, t)
    assert diffusion.losses(target, x0, noise, t).total.max() == 0

    prediction = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    loss = diffusion.losses(prediction, x0, noise, t).mse
    x_t = diffusion.add_noise(x0, noise, t)
    for i, step in enumerate(t.tolist()):
        level = diffusion.level(step)
        row = slice(i, i + 1)
        predicted, _ = diffusion.x0_and_eps(prediction[row].double(), x_t[row].double(), level)
        true, _ = diffusion.x0_and_eps(target[row].double(), x_t[row].double(), level)
        expected = X0_WEIGHTS[weighting](level.alpha_bar) * float((predicted - true).square().mean())
        assert float(loss[i]) == pytest.approx(expected, rel=1e-3)


def test_which_weightings_train_the_last_timestep():
    """Where sampling starts: `v` trains it as any other, the published weighting and min-snr do not at all."""
    diffusion = Diffusion()
    last = {w: loss_weights(w, "v", diffusion.alphas_cumprod, 5.0)[-1] for w in X0_WEIGHTS}
    assert last["v"] == last["x0"] == 1
    assert last["p2"] == last["min-snr"] == last["eps"] == 0


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_another_weighting_is_one_more_function_of_the_noise_level(parametrisation, monkeypatch):
    monkeypatch.setitem(WEIGHTINGS, "signal", lambda alpha_bar, gamma: alpha_bar * gamma)
    settings = {"parametrisation": parametrisation, "zero_terminal_snr": False, "learn_sigma": False}
    ours, plain = Diffusion(**settings, weighting="signal", min_snr_gamma=3.0), Diffusion(**settings, weighting="x0")
    x0, noise, prediction = torch.randn(3, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0, 300, 600, 999])
    weights = torch.tensor(3 * plain.alphas_cumprod[t]).float()
    expected = weights * plain.losses(prediction, x0, noise, t).mse
    torch.testing.assert_close(ours.losses(prediction, x0, noise, t).mse, expected)


def test_a_weighting_that_does_not_exist_here_prevents_training_alone():
    """A model of a changed copy of the package can be sampled with this one."""
    theirs, ours = Diffusion(weighting="theirs"), Diffusion()
    x, t = torch.ones(1, 4, 8, 8), torch.tensor([5])
    for a, b in zip(theirs.x0_and_eps(x, x, ours.level(500)), ours.x0_and_eps(x, x, ours.level(500)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"^weighting='theirs': choose one of v, eps, x0, min-snr, p2"):
        theirs.losses(x.repeat(1, 2, 1, 1), x, x, t)


def test_levels():
    """At pure noise and at the image the angle is known; between two timesteps alpha_bar is interpolated."""
    diffusion = Diffusion()
    assert diffusion.level(999)[:4] == pytest.approx((0, 0, 1, math.pi / 2), abs=1e-12)
    assert diffusion.clean[:4] == (1, 1, 0, 0)
    level = diffusion.level(500)
    assert level.alpha_bar == diffusion.alphas_cumprod[500]
    assert (math.cos(level.place), math.sin(level.place)) == pytest.approx((level.signal, level.noise))
    assert (level.signal_slope, level.noise_slope) == pytest.approx((-math.sin(level.place), math.cos(level.place)))
    assert diffusion.level(500.5).alpha_bar == pytest.approx(diffusion.alphas_cumprod[500:502].mean())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr(schedule):
    plain, rescaled = Diffusion(schedule, zero_terminal_snr=False), Diffusion(schedule)
    assert rescaled.alphas_cumprod[-1] == 0 < plain.alphas_cumprod[-1]
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-12)
    assert (np.diff(rescaled.alphas_cumprod) < 0).all()
    assert all(np.isfinite(table).all() for table in rescaled._tables.values())


def test_mean_is_detached_in_the_bound():
    diffusion = Diffusion()
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    prediction = torch.zeros(2, 8, 8, 8, requires_grad=True)
    diffusion.losses(prediction, x0, noise, torch.tensor([0, 600])).vb.sum().backward()
    assert prediction.grad[:, :4].abs().max() == 0
    assert (prediction.grad[:, 4:].abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("schedule", "sigmoid", "linear, scaled-linear, cosine"),
        ("parametrisation", "epsilon", "v, eps, x0"),
        ("timesteps", 1, "at least 2"),
        ("beta_start", 0.5, "beta_start=0.5"),
        ("min_snr_gamma", 0, "min_snr_gamma=0"),
    ],
)
def test_bad_settings_are_refused(setting, value, says):
    with pytest.raises(ValueError, match=says):
        Diffusion(**{setting: value})


def test_eps_with_zero_terminal_snr_is_refused():
    with pytest.raises(ValueError, match="parametrisation='eps' with zero_terminal_snr"):
        Diffusion(parametrisation="eps")


def test_prediction_without_variance_channels_is_refused():
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="prediction has 4 channels"):
        Diffusion().losses(x, x, x, torch.tensor([5]))


@pytest.mark.parametrize("parametrisation", ["v", "x0", "eps"])
def test_the_mean_of_a_predicted_image_is_the_one_that_predicts_it(parametrisation):
    diffusion = Diffusion(parametrisation=parametrisation, zero_terminal_snr=parametrisation != "eps")
    mean, x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for t in (0, 500, 998) if parametrisation == "eps" else (0, 500, 999):
        level = diffusion.level(t)
        x0, _ = diffusion.x0_and_eps(mean, x, level)
        torch.testing.assert_close(diffusion.mean_of(x0, x, level), mean, atol=2e-4, rtol=2e-4)


def test_noise_stays_float32_under_autocast():
    diffusion, x0, noise, t = Diffusion(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([3, 999])
    expected = diffusion.add_noise(x0, noise, t)
    with torch.autocast("cpu", torch.bfloat16):
        noisy = diffusion.add_noise(x0, noise, t)
        losses = diffusion.losses(torch.zeros(2, 6, 4, 4, dtype=torch.bfloat16), x0, noise, t)
    assert noisy.dtype == losses.total.dtype == torch.float32 and torch.equal(noisy, expected)
