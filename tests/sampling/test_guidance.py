import pytest
import torch

from fpdm.sampling.guidance import Guidance, guide, rescaled

CONDITIONAL, NULL = torch.randn(2, 3, 8, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
BOTH = torch.cat([CONDITIONAL, NULL])


def test_all_channels_of_the_mean():
    guided = guide(BOTH, 4, Guidance(4.0))
    torch.testing.assert_close(guided[:, :4], NULL[:, :4] + 4 * (CONDITIONAL[:, :4] - NULL[:, :4]))
    assert torch.equal(guided[:, 4:], CONDITIONAL[:, 4:])  # the variance is not guided


def test_first_three_channels_alone():
    guided = guide(BOTH, 4, Guidance(4.0, channels=3))
    assert torch.equal(guided[:, 3:], CONDITIONAL[:, 3:])
    assert not torch.equal(guided[:, :3], CONDITIONAL[:, :3])


def test_scale_one_is_no_guidance():
    torch.testing.assert_close(guide(BOTH, 4, Guidance(1.0)), CONDITIONAL)


def test_what_a_model_cannot_do():
    with pytest.raises(ValueError, match="cfg_channels=5: the latent has 4"):
        Guidance(2.0, channels=5).check_model(True, 4)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0: this model was trained without label dropout"):
        Guidance(2.0, option="guidance").check_model(False, 4)


def test_rescaling_brings_back_the_spread_of_the_conditional_prediction():
    strong = guide(BOTH, 4, Guidance(9.0))[:, :4]
    for amount in (0.5, 1.0):
        ours = guide(BOTH, 4, Guidance(9.0, rescale=amount))
        torch.testing.assert_close(ours[:, :4], rescaled(strong, CONDITIONAL[:, :4], amount))
        assert torch.equal(ours[:, 4:], CONDITIONAL[:, 4:])
    spread = ours[:, :4].flatten(1).std(dim=1)
    torch.testing.assert_close(spread, CONDITIONAL[:, :4].flatten(1).std(dim=1))
    half = guide(BOTH, 4, Guidance(9.0, rescale=0.5))[:, :4]
    torch.testing.assert_close(half, (strong + ours[:, :4]) / 2)  # halfway between not at all and wholly


def test_interval_of_timesteps():
    inside = Guidance(2.0, interval=[100, 700])
    assert [inside.at(t) for t in (999, 701, 700, 100, 99)] == [False, False, True, True, False]
    assert Guidance(2.0).at(999) and not Guidance(1.0).at(500)
