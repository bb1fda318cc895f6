import numpy as np
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding

from fpdm.models.embeddings import sincos_positions, sinusoidal_embedding


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


def test_positions_against_diffusers():
    expected = get_2d_sincos_pos_embed(64, 6, base_size=6, output_type="pt")
    np.testing.assert_allclose(sincos_positions(64, 6)[0].numpy(), expected.numpy(), atol=1e-5)
