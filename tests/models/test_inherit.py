"""What a new network takes from a trained one, held against the source's weights and predictions."""

import pytest
import torch
from torch.nn import functional as F

from fpdm.models import Denoiser, build_model
from fpdm.models.inherit import inherit
from fpdm.models.origins import INIT_RULES

TIMED = {"pre_post_timestep_conditioning": True}
SIZES = {"input_size": 8, "in_channels": 3, "hidden_size": 32, "num_heads": 2, "num_classes": 3}


def new(name, seed=1, **settings) -> Denoiser:
    torch.manual_seed(seed)
    depth = {"depth": 6} if name.startswith("DiT") else {}
    return build_model(name, **SIZES | depth | settings).eval()


def trained(name, **settings) -> Denoiser:
    """With all weights random, those that begin as 0 too."""
    model = new(name, seed=0, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def predict(model, size=8, channels=3, **forward):
    x = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    forward = forward or ({"iterations": 3} if model.iterative else {})
    with torch.no_grad():
        return model(x, torch.tensor([999, 500, 20, 0]), torch.arange(4), **forward).prediction


def assert_equal_states(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


NAMES = ["ant", "bee", "cow"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DiT-XS/2", {}),
        ("DiT-XS/2", {"early_head": 2, "qk_norm": True, "positions": "learned"}),
        ("FPDM-XS/2", {}),
        ("FPDM-XS/2", {"injection": "lanes", "loop_embedding": 3, "early_head": 1, "learn_sigma": False}),
    ],
)
def test_a_network_of_the_same_form_is_the_same(name, settings):
    source, network = trained(name, **settings), new(name, **settings)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    taken = inherit(network, source, None, NAMES, NAMES)
    assert_equal_states(network, source)
    assert all(torch.equal(source.state_dict()[name], value) for name, value in before.items())
    assert not taken.notes and not any("new" in origin for _, origin in taken.rows)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("DiT-XS/2", {"depth": 2}, {"depth": 5}),
        ("FPDM-XS/2", {}, {"implicit_depth": 3}),
        ("FPDM-XS/2", {"implicit_depth": 2}, {"implicit_depth": 3, "pre_depth": 2, "post_depth": 4}),
        ("FPDM-XS/2", {"injection": "lanes"}, {"injection": "lanes", "implicit_depth": 2}),
        ("FPDM-XS/2", {"pre_depth": 0}, {"pre_depth": 1, "loop_embedding": 2}),
    ],
)
def test_a_deeper_network_computes_what_the_source_computes(name, before, after):
    source, network = trained(name, **before), new(name, **after)
    fresh = predict(network)
    taken = inherit(network, source, None, NAMES, NAMES)
    assert torch.equal(predict(network), predict(source)) and not torch.equal(fresh, predict(source))
    assert "new, the identity" in dict(taken.rows).values()


def test_what_was_taken_is_told_in_the_networks_order():
    network = new("FPDM-XS/2", implicit_depth=3, pre_depth=2)
    assert inherit(network, trained("FPDM-XS/2", implicit_depth=2), None, NAMES, NAMES).rows == [
        ("x_embedder, t_embedder", "the same"),
        ("y_embedder", "3 of 3 classes, by name, and the null label"),
        ("pre_blocks.0", "pre_blocks.0"),
        ("pre_blocks.1", "new, the identity"),
        ("implicit.blocks.0-1", "implicit.blocks.0-1"),
        ("implicit.blocks.2", "new, the identity"),
        ("post_blocks.0", "post_blocks.0"),
        ("implicit.injection", "the same"),
        ("final_layer", "the same"),
    ]


def test_an_fpdm_takes_first_middle_and_last_blocks_of_a_dit():
    source, network = trained("DiT-XS/2", depth=9), new("FPDM-XS/2", pre_depth=2, post_depth=1, implicit_depth=2)
    injection = {name: value.clone() for name, value in network.implicit.injection.state_dict().items()}
    taken = inherit(network, source)  # the middle ones are 2 to 7
    for ours, number in zip([*network.pre_blocks, *network.implicit.blocks, *network.post_blocks],
                            [0, 1, 3, 6, 8], strict=True):  # fmt: skip
        assert_equal_states(ours, source.blocks[number])
    for part in ("x_embedder", "t_embedder", "final_layer"):
        assert_equal_states(network.get_submodule(part), source.get_submodule(part))
    for name, value in network.implicit.injection.state_dict().items():
        assert torch.equal(value, injection[name])
    assert dict(taken.rows)["pre_blocks.0-1"] == "blocks.0-1" and dict(taken.rows)["post_blocks.0"] == "blocks.8"
    assert dict(taken.rows)["implicit.injection"] == "as in a new network"
    assert "--model.pre_post_timestep_conditioning true keeps that" in taken.notes[0]


def test_implicit_blocks_as_means_of_a_dits_middle_blocks():
    source, network = trained("DiT-XS/2", depth=7), new("FPDM-XS/2", implicit_depth=2, **TIMED)
    taken = inherit(network, source, "average")
    for block, numbers in zip(network.implicit.blocks, ((1, 2), (3, 4, 5)), strict=True):
        for name, value in block.named_parameters():
            mean = sum(source.blocks[number].get_parameter(name).double() for number in numbers) / len(numbers)
            torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-7)
    assert dict(taken.rows)["implicit.blocks.1"] == "the mean of blocks.3-5" and not taken.notes


@pytest.mark.parametrize("injection", ["add", "none"])
def test_an_fpdm_of_all_blocks_and_one_iteration_is_the_dit(injection):
    """Where the injection adds nothing at the start, as many implicit blocks as there are middle ones are the DiT."""
    source = trained("DiT-XS/2", depth=6)
    network = new("FPDM-XS/2", pre_depth=2, implicit_depth=3, injection=injection, **TIMED)
    for rule in INIT_RULES:
        inherit(network, source, rule, NAMES, NAMES)
        assert torch.equal(predict(network, iterations=1), predict(source))


@pytest.mark.parametrize("rule", INIT_RULES)
def test_rules_choose_blocks_in_order_and_spread_them(rule):
    for blocks in range(1, 14):
        for count in range(1, blocks + 1):
            chosen = INIT_RULES[rule].choose(blocks, count)
            ends = [0, *(part.stop for part in chosen)]
            assert len(chosen) == count and all(chosen) and ends == sorted(set(ends)) and ends[-1] <= blocks
            below = chosen[0].start  # as many blocks are left out below the first as above the last, or one more
            assert 0 <= below - (blocks - chosen[-1].stop) <= 1
            if rule == "average":
                assert [number for part in chosen for number in part] == list(range(blocks))
                assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
            elif count == 1:
                assert [*chosen[0]] == [blocks // 2]


def test_label_rows_are_taken_by_name():
    source, network = trained("DiT-XS/2", num_classes=3), new("DiT-XS/2", num_classes=4)
    fresh, theirs = network.y_embedder.embedding_table.weight.clone(), source.y_embedder.embedding_table.weight
    taken = inherit(network, source, None, ["cow", "dog", "ant", "emu"], NAMES)
    ours = network.y_embedder.embedding_table.weight
    assert torch.equal(ours[[0, 2, 4]], theirs[[2, 0, 3]]) and torch.equal(ours[[1, 3]], fresh[[1, 3]])
    assert dict(taken.rows)["y_embedder"] == (
        "2 of 4 classes, by name, and the null label; the others as in a new network"
    )
    for ours, theirs in ((None, NAMES), (NAMES, None)):  # such as before there is a store
        network = new("DiT-XS/2")
        assert "where both sides name them" in dict(inherit(network, source, None, ours, theirs).rows)["y_embedder"]
        table, other = (one.y_embedder.embedding_table.weight for one in (network, source))
        assert torch.equal(table[3], other[3]) and not torch.isclose(table[:3], other[:3]).all(1).any()


def test_learned_positions_are_interpolated():
    source = trained("DiT-XS/2", positions="learned")
    network = new("DiT-XS/2", positions="learned", input_size=12)
    taken = inherit(network, source)
    grid = source.pos_embed.detach().reshape(4, 4, 32).permute(2, 0, 1)[None]
    wanted = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(36, 32)
    torch.testing.assert_close(network.pos_embed.detach()[0], wanted)
    assert dict(taken.rows)["pos_embed"] == "interpolated from 4 x 4 to 6 x 6 tokens"


@pytest.mark.parametrize(("before", "after"), [((4, 16), 8), (8, (4, 16)), (8, 16), (16, 32), (8, (8, 24))])
def test_positions_of_another_shape_say_the_same_place(before, after):
    """Row and column, as shares of the image, are linear, so resampling keeps them where it sees no edge; also for as
    many tokens in another shape."""
    source = trained("DiT-XS/2", positions="learned", input_size=before)
    network = new("DiT-XS/2", positions="learned", input_size=after)
    place = lambda grid: torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij"), -1)  # noqa: E731
    with torch.no_grad():
        source.pos_embed[0, :, :2] = place(source.grid).flatten(0, 1)
    inherit(network, source)
    found = network.pos_embed.detach()[0, :, :2].unflatten(0, network.grid)
    assert (found - place(network.grid)).abs().max() < 0.13  # at the edges
    for axis, (tokens, others) in enumerate(zip(source.grid, network.grid, strict=True)):
        along = found[..., axis].movedim(axis, 0)
        assert (along.diff(dim=0) > 0).all() and (along - along[:, :1]).abs().max() < 1e-5
        if tokens == 8 and others == 16:  # the cubic reaches two tokens far
            torch.testing.assert_close(along[5:11], place(network.grid)[..., axis].movedim(axis, 0)[5:11])


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_other_positions_are_those_of_the_resolution(positions):
    source = trained("FPDM-XS/2", positions=positions)
    network, same = (new("FPDM-XS/2", positions=positions, input_size=12) for _ in range(2))
    inherit(network, source, None, NAMES, NAMES)
    same.load_state_dict(source.state_dict())  # positions are in no state dict
    assert torch.equal(predict(network, 12), predict(same, 12))


def test_the_mean_is_taken_where_one_side_has_no_variance():
    both, mean = trained("FPDM-XS/2"), new("FPDM-XS/2", learn_sigma=False)
    taken = inherit(mean, both, None, NAMES, NAMES)
    torch.testing.assert_close(predict(mean), predict(both)[:, :3])
    assert dict(taken.rows)["final_layer"] == "that of the mean; the variance's is not needed"
    again = new("FPDM-XS/2")
    taken = inherit(again, mean, None, NAMES, NAMES)
    torch.testing.assert_close(predict(again)[:, :3], predict(mean))
    assert predict(again)[:, 3:].abs().max() == 0  # a new head's
    assert dict(taken.rows)["final_layer"] == "the same for the mean; for the variance as in a new network"


def test_what_the_source_lacks_is_new():
    """A head for another exit, an injection of another kind."""
    source = trained("FPDM-XS/2", early_head=1)
    network = new("FPDM-XS/2", early_head=2, injection="norm")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = dict(inherit(network, source, None, NAMES, NAMES).rows)
    assert rows["early_layer"] == rows["implicit.injection"] == "as in a new network"
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("early_layer", "implicit.injection")), name


REFUSED = {
    "width": ({"hidden_size": 64}, {}, r"hidden_size is 32 in the weights and 64 in the network; choose a"),
    "heads": ({"num_heads": 4}, {}, r"num_heads is 2 in the weights and 4 .* set model\.num_heads"),
    "channels": ({"in_channels": 4}, {}, r"in_channels is 3 in the weights and 4 .* \(data\.latents\)"),
    "patch": ({"name": "FPDM-XS/4"}, {}, r"patch_size is 2 in the weights and 4 .* choose a model\.name"),
    "qk_norm": ({"qk_norm": True}, {}, r"model\.qk_norm is false in the weights and true .* set it to false"),
    "positions": ({"positions": "learned"}, {}, r"model\.positions is sincos in the weights .* set it to sincos"),
    "family": ({"name": "DiT-XS/2"}, {}, "of an FPDM and the network is a DiT; choose an FPDM"),
    "pre": ({"pre_depth": 0}, {}, r"model\.pre_depth is 1 in the weights and 0 in the network; set it to 1 or more"),
    "core": ({}, {"implicit_depth": 2}, r"model\.implicit_depth is 2 in the weights and 1 .* 2 or more"),
    "DiT": ({"name": "DiT-XS/2", "depth": 4}, {"name": "DiT-XS/2"}, r"model\.depth is 6 in the weights and 4"),
    "few": ({"implicit_depth": 5}, {"name": "DiT-XS/2"}, r"post_depth=1 are 7 blocks, .* of a DiT with 6; set fewer"),
    "loops": ({}, {"loop_embedding": 4}, r"model\.loop_embedding is 4 in the weights and 0 .* set it to 4"),
    "lanes": ({"injection": "lanes", "loop_embedding": 4}, {"injection": "lanes"},
              r"implicit\.injection\.carry, implicit\.injection\.read, .* of other shapes"),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "says"), REFUSED.values(), ids=REFUSED)
def test_weights_that_cannot_be_taken_are_refused_by_name(ours, theirs, says):
    network, source = (new(**{"name": "FPDM-XS/2", **settings}) for settings in (ours, theirs))
    with pytest.raises(ValueError, match=says):
        inherit(network, source, None, NAMES, NAMES)


def test_rules_are_for_an_fpdm_from_a_dit():
    with pytest.raises(ValueError, match="init_rule=average: only for an FPDM from a DiT"):
        inherit(new("FPDM-XS/2"), new("FPDM-XS/2"), "average")
    with pytest.raises(ValueError, match="init_rule='avarage': choose one of copy, average"):
        inherit(new("FPDM-XS/2"), new("DiT-XS/2"), "avarage")


def test_a_network_without_memory_can_be_asked():
    """For a dry run: the same words, and the same refusals."""
    source = trained("DiT-XS/2", positions="learned")
    settings = {"positions": "learned", "input_size": 12, "learn_sigma": False}
    with torch.device("meta"):
        without = new("FPDM-XS/2", **settings)
    assert inherit(without, source, "average", NAMES, NAMES) == inherit(
        new("FPDM-XS/2", **settings), source, "average", NAMES, NAMES
    )
