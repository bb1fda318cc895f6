import torch
from torch import nn

from fpdm.training.ema import EMA, ramped_decay


def test_ramp():
    assert ramped_decay(0.9999, 0) == 0.1
    assert ramped_decay(0.9999, 10**7) == 0.9999
    decays = [ramped_decay(0.999, step) for step in range(0, 20_000, 50)]
    assert decays == sorted(decays)


def test_average_is_the_recursion():
    model = nn.Linear(3, 2)
    ema, expected = EMA(model, 0.5), model.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(1)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.model.weight.detach(), expected)


def test_average_of_half_precision_weights_moves():
    """At decay 0.9999 a bfloat16 average would round each update away."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.9999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        ema.update(model, 10**6)
    assert ema.model.weight.dtype == torch.float32
    assert 1.09 < float(ema.model.weight) < 1.1
