import pytest
import torch

from fpdm.models import DiT, FixedPointDiT
from fpdm.models.convert import from_published


def test_family_is_read_from_the_names(recorded):
    for name, family in (("dit", DiT), ("fpdm_timed", FixedPointDiT)):
        data = recorded(name)
        model = from_published(data.state, **data.config)
        assert type(model) is family
        assert not model.training


@pytest.mark.parametrize("name", ["dit", "fpdm_untimed"])
def test_unknown_and_missing_names_are_listed(recorded, name):
    data = recorded(name)
    state = dict(data.state)
    state["extra.weight"] = state.pop("final_layer.linear.bias")
    with pytest.raises(
        ValueError, match=r"unknown names \['extra.weight'\].*missing names \['final_layer.linear.bias'\]"
    ):
        from_published(state, **data.config)


def test_depth_that_does_not_fit_is_a_missing_name(recorded):
    data = recorded("dit")
    with pytest.raises(ValueError, match=r"blocks\.2\.mlp\.fc2\.weight"):
        from_published(data.state, **{**data.config, "depth": 3})


def test_wrong_shapes_are_listed(recorded):
    data = recorded("fpdm_untimed")
    with pytest.raises(ValueError, match=r"y_embedder.embedding_table.weight: \(11, 32\) instead of \(8, 32\)"):
        from_published(data.state, **{**data.config, "num_classes": 7})


def test_positions_of_another_size_are_refused(recorded):
    data = recorded("dit")
    with pytest.raises(ValueError, match="pos_embed with shape"):
        from_published(data.state, **{**data.config, "input_size": 16})
    state = data.state | {"pos_embed": torch.zeros_like(data.state["pos_embed"])}
    with pytest.raises(ValueError, match="not the sin-cos table"):
        from_published(state, **data.config)
