import numpy as np
import torch

from fpdm.processes import Diffusion
from fpdm.training.draws import draw_mirrored, draw_step


def draws(rows, seed=0, step=5):
    return draw_step(seed, step, 12, rows, (4, 8, 8), Diffusion(), 0.3, torch.device("cpu"))


def test_ranks_take_their_rows_of_one_draw():
    whole = draws(slice(0, 12))
    parts = [draws(slice(i, i + 4)) for i in (0, 4, 8)]
    for name in ("t", "noise", "latent_noise", "drop_labels"):
        pieces = [getattr(part, name) for part in parts]
        assert torch.equal(getattr(whole, name), torch.cat(pieces))
        assert torch.equal(getattr(whole.rows(slice(4, 8)), name), pieces[1])


def test_steps_and_seeds_differ():
    assert not torch.equal(draws(slice(0, 12)).noise, draws(slice(0, 12), step=6).noise)
    assert not torch.equal(draws(slice(0, 12)).noise, draws(slice(0, 12), seed=1).noise)
    assert not torch.equal(draws(slice(0, 12)).noise, draws(slice(0, 12)).latent_noise)


def test_distributions():
    many = draw_step(0, 0, 20_000, slice(None), (1, 1, 1), Diffusion(), 0.3, torch.device("cpu"))
    assert many.t.min() == 0 and many.t.max() == 999
    assert abs(float(many.drop_labels.float().mean()) - 0.3) < 0.02
    assert abs(draw_mirrored(0, 0, 20_000).mean() - 0.5) < 0.02
    assert not np.array_equal(draw_mirrored(0, 0, 64), draw_mirrored(0, 1, 64))
