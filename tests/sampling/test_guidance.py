import pytest
import torch

from fpdm.sampling.guidance import guide

CONDITIONAL, NULL = torch.randn(2, 3, 8, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
BOTH = torch.cat([CONDITIONAL, NULL])


def test_all_channels_of_the_mean():
    guided = guide(BOTH, 4.0, latent_channels=4)
    torch.testing.assert_close(guided[:, :4], NULL[:, :4] + 4 * (CONDITIONAL[:, :4] - NULL[:, :4]))
    assert torch.equal(guided[:, 4:], CONDITIONAL[:, 4:])  # the variance is not guided


def test_first_three_channels_alone():
    guided = guide(BOTH, 4.0, latent_channels=4, guided_channels=3)
    assert torch.equal(guided[:, 3:], CONDITIONAL[:, 3:])
    assert not torch.equal(guided[:, :3], CONDITIONAL[:, :3])


def test_scale_one_is_no_guidance():
    torch.testing.assert_close(guide(BOTH, 1.0, latent_channels=4), CONDITIONAL)


def test_more_channels_than_there_are():
    with pytest.raises(ValueError, match="cfg_channels=5"):
        guide(BOTH, 2.0, latent_channels=4, guided_channels=5)
