import torch
from diffusers.models.embeddings import get_timestep_embedding

from fpdm.models.blocks import sincos_positions, sinusoidal_embedding


def test_timesteps_against_diffusers():
    t = torch.tensor([0, 1, 500, 998, 999])
    expected = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(t, 256), expected, atol=1e-5, rtol=0)


def test_timesteps_stay_float32_under_autocast():
    t = torch.tensor([998, 999])
    with torch.autocast("cpu", torch.bfloat16):
        lowered = sinusoidal_embedding(t, 256)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, sinusoidal_embedding(t, 256))
    assert not torch.equal(lowered[0], lowered[1])


def test_positions_are_the_published_ones(recorded):
    data = recorded("dit")
    torch.testing.assert_close(sincos_positions(32, 4, 4), data.state["pos_embed"], atol=1e-6, rtol=0)
    rows = sincos_positions(8, 3, 3).reshape(3, 3, 8)
    assert torch.equal(rows[0, :, :4], rows[2, :, :4])  # the first half tells the column alone
    assert torch.equal(rows[:, 0, 4:], rows[:, 2, 4:])  # the second the row
