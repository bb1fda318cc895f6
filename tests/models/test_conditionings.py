"""What a network is conditioned on: the interface, and attributes in particular."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fpdm.conditionings import CONDITIONINGS, Conditions
from fpdm.config import OptimConfig
from fpdm.models import build_model, forward_cost
from fpdm.models.inherit import inherit
from fpdm.training.optimizers import parameter_groups

MEAN, STD = [2010.25, -0.5], [3.0, 0.25]
Y = torch.tensor([[2009.0, -0.5], [2013.25, 0.0], [1998.0, -1.5]])
SIZES = {"input_size": 4, "in_channels": 3, "hidden_size": 32, "num_heads": 2}
OF_ATTRIBUTES = {"conditioning": "attributes", "attribute_mean": MEAN, "attribute_std": STD}
FAMILIES = {"DiT-XS/2": ({"depth": 2}, {}), "FPDM-XS/2": ({}, {"iterations": 3})}


def random(model):
    """With all weights random, those that begin as 0 too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def network(name="FPDM-XS/2", **settings):
    return random(build_model(name, **SIZES | FAMILIES[name][0] | OF_ATTRIBUTES | settings)).eval()


def embedder(**settings):
    return network(**settings).y_embedder


def inputs(count=3):
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([999, 500, 0])[:count]


def test_attributes_are_standardised_and_then_embedded():
    """Against the two maps in float64."""
    model = embedder()
    standardised = (Y.double().numpy() - np.array(MEAN)) / np.array(STD)
    (w1, b1), (w2, b2) = ((one.weight.detach().double(), one.bias.detach().double()) for one in model.mlp[::2])
    hidden = F.silu(torch.from_numpy(standardised) @ w1.T + b1)
    torch.testing.assert_close(model(Y).double(), hidden @ w2.T + b2, atol=1e-5, rtol=1e-4)


def test_a_null_row_does_not_depend_on_its_values():
    model, drop = embedder(), torch.tensor([True, False, True])
    plain, dropped = model(Y), model(Y, drop)
    assert torch.equal(dropped[1], plain[1]) and torch.equal(dropped[[0, 2]], model.null_embedding.expand(2, -1))
    assert torch.equal(model(Y.where(~drop[:, None], torch.nan)), dropped)
    assert torch.equal(model(torch.full_like(Y, model.null)), model.null_embedding.expand(3, -1))
    assert not torch.equal(plain[0], plain[2])


def test_null_rows_give_no_gradient_to_the_maps():
    model = embedder()
    model(Y, torch.ones(3, dtype=torch.bool)).sum().backward()
    assert model.null_embedding.grad.eq(3).all()
    assert all(weight.grad is not None and weight.grad.eq(0).all() for weight in model.mlp.parameters())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_training_drops_some_and_evaluation_none(conditioning):
    conditions = Conditions(3, 0.3, conditioning, *((MEAN, STD) if conditioning == "attributes" else ()))
    model = CONDITIONINGS[conditioning](conditions, 8)
    random(model)
    y = model.example(4000)
    null = model(torch.full_like(y[:1], model.null))
    share = model.train()(y).isclose(null).all(1).float().mean()
    assert abs(float(share) - 0.3) < 0.03
    assert not model.eval()(y).isclose(null).all(1).any()
    assert model(y).shape == (4000, 8) and model.of in ("labels", "attributes")


def test_mean_and_deviation_are_exact_in_any_precision():
    """bfloat16 has no 2010.25: attributes near it would be shifted by more than a deviation."""
    model = embedder()
    before, exact = model.mean.clone(), model(Y)
    assert not torch.tensor(MEAN).bfloat16().float().equal(before)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = model.bfloat16()(Y)
    assert torch.equal(model.mean, before) and model.mlp[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), exact, atol=0.05, rtol=0.05)


def test_under_autocast_the_conditioning_is_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert embedder()(Y, torch.tensor([True, False, False])).dtype == torch.float32


def test_it_compiles_to_one_graph():
    torch.compiler.reset()
    model, drop = embedder(), torch.tensor([True, False, False])
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(Y, drop), model(Y, drop))


@pytest.mark.parametrize("name", FAMILIES)
def test_both_families_follow_their_attributes(name):
    model, (x, t) = network(name), inputs()
    forward = FAMILIES[name][1]
    plain, other = (model(x, t, y, **forward).prediction for y in (Y, Y + torch.tensor([0.0, 0.3])))
    assert plain.shape == (3, 6, 4, 4) and not torch.isclose(plain, other).all()
    null = torch.full_like(Y, torch.nan)
    drop = torch.tensor([False, True, False])
    dropped = model(x, t, Y, drop_labels=drop, **forward).prediction
    torch.testing.assert_close(dropped[1], model(x, t, null, **forward).prediction[1])
    torch.testing.assert_close(dropped[::2], plain[::2])
    with pytest.raises(ValueError, match=r"y has shape \(3,\): this network is conditioned on attributes, \(B, 2\)"):
        model(x, t, torch.tensor([0, 1, 0]), **forward)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_network_knows_its_attributes(name, tmp_path):
    model, (x, t) = network(name), inputs()
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(opened.y_embedder.mean, model.y_embedder.mean) and opened.conditioned_on == "attributes"
    forward = FAMILIES[name][1]
    assert torch.equal(opened(x, t, Y, **forward).prediction, model(x, t, Y, **forward).prediction)
    plain = build_model(name, **SIZES | FAMILIES[name][0])
    maps = {"mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "null_embedding"}
    ours, theirs = set(model.state_dict()), set(plain.state_dict())
    assert ours - theirs == {f"y_embedder.{part}" for part in maps}
    assert theirs - ours == {"y_embedder.embedding_table.weight"}
    assert "| attributes | 2 |" in (tmp_path / "README.md").read_text()


def test_a_call_costs_the_two_maps_more():
    """FLOPs of both maps, 2 for each multiply-add; a look-up has none."""
    ours, plain = forward_cost(network()), forward_cost(build_model("FPDM-XS/2", **SIZES))
    assert ours.explicit_flops - plain.explicit_flops == 2 * (2 * 32 + 32 * 32)
    assert ours.update_flops == plain.update_flops


def test_mups_rates_are_those_of_an_input_map_and_of_a_hidden_one():
    model = network()
    groups = parameter_groups(OptimConfig(mup_base_width=8, decay="matrices"), model)
    kinds = {id(one): (group.factor, group.decayed) for group in groups for one in group.parameters}
    first, second = model.y_embedder.mlp[0], model.y_embedder.mlp[2]
    assert kinds[id(first.weight)] == (1, True) and kinds[id(second.weight)] == (8 / 32, True)
    assert kinds[id(model.y_embedder.null_embedding)] == kinds[id(second.bias)] == (1, False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"conditioning": "text"}, "conditioning='text': choose one of class, attributes"),
        ({"attribute_mean": [0.0]}, "needs the mean and the standard deviation, above 0, of at least one attribute"),
        ({"attribute_mean": [], "attribute_std": []}, r"attribute_mean=\[\], attribute_std=\[\]: .* at least one"),
        ({"attribute_std": [1.0, 0.0]}, r"attribute_std=\[1\.0, 0\.0\]: .* above 0"),
        ({"conditioning": "class"}, "attribute_mean with conditioning=class, which has no attributes"),
    ],
)
def test_what_cannot_be_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        build_model("DiT-XS/2", **SIZES | OF_ATTRIBUTES | settings)


NAMES = ["year", "tilt"]


def test_the_same_attributes_are_taken_whole():
    source, target = network(), network()
    random(source), target.y_embedder.initialise()
    taken = inherit(target, source, None, NAMES, NAMES)
    for name, value in target.y_embedder.state_dict().items():
        assert torch.equal(value, source.y_embedder.state_dict()[name]), name
    assert dict(taken.rows)["y_embedder"] == "2 of 2 attributes, by name, and the null vector"


def test_an_attribute_keeps_its_effect_in_other_data():
    """In another order, with another mean and deviation: the same values embed as before."""
    source = network()
    target = network(attribute_mean=[0.1, 2000.0], attribute_std=[0.5, 7.0])
    inherit(target, source, None, NAMES[::-1], NAMES)
    torch.testing.assert_close(target.y_embedder(Y.flip(1)), source.y_embedder(Y), atol=1e-4, rtol=1e-4)


def test_other_attributes_are_new():
    source, target = network(), network(attribute_mean=[0.0, *MEAN[:1]], attribute_std=[1.0, *STD[:1]])
    fresh = target.y_embedder.mlp[0].weight.clone()
    taken = inherit(target, source, None, ["width", "year"], NAMES)
    ours, theirs = (one.y_embedder.mlp[0].weight for one in (target, source))
    assert torch.equal(ours[:, 0], fresh[:, 0]) and torch.equal(ours[:, 1], theirs[:, 0])
    assert dict(taken.rows)["y_embedder"] == (
        "1 of 2 attributes, by name, and the null vector; the others as in a new network"
    )


def test_of_a_class_nothing_is_taken_for_attributes():
    target, source = network(), random(build_model("FPDM-XS/2", **SIZES, num_classes=3))
    before = {name: value.clone() for name, value in target.y_embedder.state_dict().items()}
    assert dict(inherit(target, source, None, NAMES, ["a", "b", "c"]).rows)["y_embedder"] == "as in a new network"
    assert all(torch.equal(value, before[name]) for name, value in target.y_embedder.state_dict().items())
    assert torch.equal(target.t_embedder.mlp[0].weight, source.t_embedder.mlp[0].weight)


def test_a_dry_run_can_ask_what_would_be_taken():
    with torch.device("meta"):
        target = build_model("FPDM-XS/2", **SIZES | OF_ATTRIBUTES)
    assert inherit(target, network(), None, NAMES, NAMES).rows == inherit(network(), network(), None, NAMES, NAMES).rows
