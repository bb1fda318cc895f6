"""Implicit layers with several blocks, every injection against its equation, and loop embeddings."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fpdm.injections import INJECTIONS
from fpdm.models import DiT, FixedPointDiT, build_model, forward_cost, load_pretrained, load_weights
from fpdm.models.implicit import ImplicitLayer

D, TIMESTEPS = 32, 20
KNOWN = ("mlp", "add", "norm", "decay", "lanes", "none")  # whose equations are below; others must work as well


def build(seed=0, **settings) -> FixedPointDiT:
    """A small network whose weights are all random, the blocks' modulations and the outputs too."""
    torch.manual_seed(seed)
    sizes = {"input_size": 4, "in_channels": 3, "hidden_size": D, "num_heads": 2, "num_classes": 3}
    model = FixedPointDiT(**sizes | settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 4, 4, generator=generator), torch.tensor([999, 500, 0][:batch]), torch.arange(batch)


def blocks_of(model):
    """The core as a plain function of the stream and the conditioning."""

    def run(stream, c):
        for block in model.implicit.blocks:
            stream = block(stream, block.modulation(c))
        return stream

    return run


def norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def plainly(model, h, x_pre, c, loops):
    """The iterate after some updates: the equations of fpdm/injections.py, with everything computed at every update."""
    run, injection, lanes = blocks_of(model), model.implicit.injection, None
    embedding = model.implicit.loop_embedding
    for i in range(loops):
        now = c if embedding is None else c + embedding[min(i, len(embedding) - 1)]
        match type(injection).__name__:
            case "NoInjection":
                h = run(h, now)
            case "AddInjection":
                h = run(h + linear(injection.project, x_pre), now)
            case "NormInjection":
                h = run(injection.gain * norm(h) + linear(injection.project, x_pre), now)
            case "DecayInjection":
                step = torch.log(1 + torch.exp(injection.step))
                kept = torch.exp(-step * torch.exp(injection.rate))
                assert ((kept > 0) & (kept < 1)).all()
                h = run(kept * h + step * linear(injection.project, norm(x_pre)), now)
            case "MixingInjection":
                both = torch.cat([h, linear(injection.project, x_pre)], dim=-1)
                joint = torch.cat([injection.mix_h.weight, injection.mix_u.weight], dim=1)
                mixed = F.gelu(both @ joint.T + injection.mix_u.bias, approximate="tanh")
                h = run(linear(injection.mix_out, mixed), now)
            case "LanesInjection":
                lanes = torch.stack([x_pre, h - x_pre]) if lanes is None else lanes
                number = len(injection.read)
                row = i if i < number else number - 2 + (i - number) % 2
                u = torch.einsum("l,lbnd->bnd", injection.read[row], lanes)
                s = run(u, now) - u
                carried = torch.einsum("kl,lbnd->kbnd", injection.carry[row], lanes)
                lanes = carried + injection.write[row][:, None, None, None] * s
                h = lanes.sum(0)
    return h


@pytest.mark.parametrize("loop_embedding", [0, 2, 3])
@pytest.mark.parametrize("injection", KNOWN)
def test_updates_follow_the_equations(injection, loop_embedding):
    model = build(injection=injection, implicit_depth=2, loop_embedding=loop_embedding)
    layer, x_pre, c = model.implicit, torch.randn(3, 4, D), torch.randn(3, D)
    default = 2 * x_pre if injection == "lanes" else x_pre
    for given, start in ((None, default), (torch.randn(3, 4, D),) * 2):
        state, constants = layer.injection.start(x_pre, given), layer.constants(x_pre, c)
        for loops in range(1, 7):
            state = layer(state, constants.at(loops - 1))
            found = layer.injection.solution(state)
            torch.testing.assert_close(found, plainly(model, start, x_pre, c, loops), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("injection", KNOWN)
def test_a_new_layer_begins_as_its_equation_says(injection):
    """Blocks are the identity at first, and so are `add`, `none` and `lanes`; half of h decays."""
    torch.manual_seed(0)
    sizes = {"input_size": 4, "in_channels": 3, "hidden_size": D, "num_heads": 2}
    model = FixedPointDiT(**sizes, implicit_depth=3, injection=injection)
    layer, h, x_pre, c = model.implicit, torch.randn(2, 4, D), torch.randn(2, 4, D), torch.randn(2, D)
    state = layer(layer.injection.start(x_pre, h), layer.constants(x_pre, c).at(0))
    found = layer.injection.solution(state)
    expected = {"add": h, "none": h, "norm": norm(h), "lanes": h}
    if injection in expected:
        torch.testing.assert_close(found, expected[injection], atol=1e-5, rtol=1e-5)
    if injection == "decay":
        other = layer(layer.injection.start(x_pre, h + 1), layer.constants(x_pre, c).at(0))
        torch.testing.assert_close(other - found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("injection", [name for name in INJECTIONS if INJECTIONS[name].sees_input])
def test_a_later_solve_sees_its_new_input(injection):
    model = build(injection=injection)
    x, t, y = inputs()
    solution = model(x, t, y, iterations=2).solution
    assert solution.shape == (3, 4, D) and model.reusable
    ours, others = (model(x, t, y, iterations=2, init=solution).prediction for x in (x, x + 1))
    assert (ours - others).abs().max() > 1e-3
    assert build(injection=injection, reuse=True).reuse and not build(injection=injection, reuse=False).reuse


@pytest.mark.parametrize("injection", KNOWN)
def test_reuse_has_to_be_earned(injection, tmp_path):
    """Only the paper's injection reuses unless told to; a checkpoint says so, and opens whatever the default is."""
    model = build(injection=injection)
    assert model.reuse is (injection == "mlp")
    model.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["reuse"] is model.reuse and load_pretrained(tmp_path / "new").reuse is model.reuse
    for earlier in (config | {"reuse": None}, {name: value for name, value in config.items() if name != "reuse"}):
        (tmp_path / "new" / "config.json").write_text(json.dumps(earlier))
        opened = load_pretrained(tmp_path / "new")
        assert opened.reuse is model.reuse
        opened.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def reused(model, weight=1.0, anderson=0) -> list[float]:
    """Root mean squares of the solutions along a sampling run with reuse, of one x."""
    (x, _, y), sizes, solution = inputs(), [], None
    for i in range(TIMESTEPS):
        init = None if solution is None else (lambda start, h=solution: start + weight * (h - start))
        with torch.no_grad():
            t = torch.full((3,), 999 - 999 * i // TIMESTEPS)
            solution = model(x, t, y, iterations=4, init=init, anderson=anderson).solution
        sizes.append(float(solution.square().mean().sqrt()))
    return sizes


@pytest.mark.parametrize("settings", [{}, {"weight": 0.7}, {"anderson": 3}], ids=["plain", "damped", "anderson"])
@pytest.mark.parametrize("injection", [name for name in KNOWN if INJECTIONS[name].sees_input])
def test_reused_solutions_stay_bounded(injection, settings):
    """Where the start is forgotten, they do not grow at all; `add` and `lanes` grow by what their updates add.

    With Anderson acceleration, `add` is not bounded: it has no fixed point to be accelerated to.
    """
    model = build(injection=injection, implicit_depth=2)
    sizes = reused(model, **settings)
    if injection in ("mlp", "norm", "decay"):
        assert max(sizes[10:]) < 1.2 * max(sizes[:10])
    elif injection == "lanes" or "anderson" not in settings:
        added = max(b - a for a, b in zip([0, *sizes], sizes, strict=False))
        assert added < 1.5 * sizes[0]


def test_two_lanes_do_not_grow_from_timestep_to_timestep():
    """New blocks change nothing, so the solution of every timestep is that of the first: twice x_pre."""
    torch.manual_seed(0)
    model = FixedPointDiT(4, 2, 3, D, 2, injection="lanes", num_classes=3).eval()
    for weight in (1.0, 0.7):
        sizes = reused(model, weight=weight)
        assert sizes == pytest.approx([sizes[0]] * TIMESTEPS, rel=1e-5)


def test_reuse_without_injection_is_refused():
    with pytest.raises(ValueError, match="reuse=true with injection=none: updates do not see the new input"):
        build(injection="none", reuse=True)
    model = build(injection="none")
    assert not model.reuse
    with pytest.raises(ValueError, match="init with injection=none"):
        model(*inputs(), iterations=1, init=torch.zeros(3, 4, D))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"injection": "gate"}, "injection='gate': choose one of mlp, add, norm, decay, lanes, none"),
        ({"implicit_depth": 0}, "implicit_depth=0: at least 1"),
        ({"loop_embedding": -1}, "loop_embedding=-1: at least 0"),
        ({"early_head": -1}, "early_head=-1: at least 1, or 0 for none"),
        ({"early_head": 4, "implicit_depth": 2}, "early_head=4: exits are after 1 to 3 .*whole updates of 2, as in 5"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        build(**settings)


@pytest.mark.parametrize("injection", KNOWN)
def test_costs_and_layers_follow_the_depth(injection):
    once = forward_cost(build(injection=injection, loop_embedding=2))
    model = build(injection=injection, implicit_depth=4, loop_embedding=2)
    cost = forward_cost(model)
    assert (cost.explicit_blocks, cost.update_blocks) == (2, 4) and len(model.layers()) == 3
    block = forward_cost(DiT(4, 2, 3, D, 2, 2)).explicit_flops - forward_cost(DiT(4, 2, 3, D, 1, 2)).explicit_flops
    modulation = 2 * 6 * D * D
    injected = cost.update_flops - 4 * (block - modulation)
    assert injected == once.update_flops - (block - modulation)
    assert injected == (2 * 4 * 4 * D * D if injection == "mlp" else 0)  # 4 tokens, W_1h and W_2 of D x 2D each


@pytest.mark.parametrize("size", ["XS", "XL"])
def test_an_update_with_add_costs_its_blocks(size):
    """At most 5 % more than K blocks of a DiT, in FLOPs; the loop's modulations are computed once per timestep."""
    with torch.device("meta"):
        one, two = (forward_cost(build_model(f"DiT-{size}/2", depth=depth)).explicit_flops for depth in (1, 2))
        costs = {(injection, depth): forward_cost(build_model(
            f"FPDM-{size}/2", injection=injection, implicit_depth=depth)).update_flops
            for injection in ("add", "mlp") for depth in (1, 3)}  # fmt: skip
    for depth in (1, 3):
        assert 0.95 * depth < costs["add", depth] / (two - one) <= 1.05 * depth
    assert costs["mlp", 1] > 1.2 * costs["add", 1]


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("loop_embedding", [0, 3])
def test_gradients_with_n_equal_those_of_detach(injection, loop_embedding):
    """S-JFB: n updates without gradient, then m with; loop numbers continue over the two parts."""
    n, m = 2, 2
    ours, plain = (build(injection=injection, implicit_depth=2, loop_embedding=loop_embedding) for _ in range(2))
    x, t, y = inputs()
    ours(x, t, y, iterations=m, iterations_no_grad=n).prediction.square().sum().backward()
    c_y = plain.y_embedder(y)
    c = plain.t_embedder(t) + c_y
    x_pre = plain.embed(x)
    for block in plain.pre_blocks:
        x_pre = block(x_pre, block.modulation(c_y))
    layer = plain.implicit
    constants, state = layer.constants(x_pre, c), layer.injection.start(x_pre)
    for loop in range(n):
        state = layer(state, constants.at(loop))
    state = state.detach()
    for loop in range(n, n + m):
        state = layer(state, constants.at(loop))
    h = layer.injection.solution(state)
    for block in plain.post_blocks:
        h = block(h, block.modulation(c_y))
    plain.head(h, c_y).square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, msg=name)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_learns(injection, recompute):
    model = build(injection=injection, implicit_depth=2, loop_embedding=2, early_head=1).train()
    output = model(*inputs(), iterations=2, exits=(1,), recompute=recompute)
    (output.prediction.square().sum() + output.early[0].square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_iterates_are_float32_under_autocast(injection, dtype):
    model, types = build(injection=injection, implicit_depth=2, loop_embedding=2), []
    for layer in (model.implicit, *model.implicit.blocks):
        layer.register_forward_hook(lambda module, args, out: types.extend((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype):
        output = model(*inputs(), iterations=3)
    exact = model(*inputs(), iterations=3)
    assert set(types) == {torch.float32} and output.solution.dtype == torch.float32
    close = (output.prediction - exact.prediction).norm() / exact.prediction.norm()
    assert 0 < close < 0.05


def earlier(state: dict) -> dict:
    """A state dict with the names that checkpoints had before an implicit layer could hold several blocks."""
    found = {}
    for name, value in state.items():
        name = name.replace("implicit.injection.project.", "implicit.injection.")
        name = name.replace("implicit.injection.mix_", "implicit.mix_").replace("implicit.blocks.0.", "implicit.block.")
        found[name] = value
    return found


def test_earlier_checkpoints_open(tmp_path):
    """By load_state_dict, by the folder of a checkpoint and by the Hub's own from_pretrained; strict as ever."""
    from safetensors.torch import load_file, save_file

    model = build()
    model.save_pretrained(tmp_path)
    renamed = earlier(load_file(tmp_path / "model.safetensors"))
    assert {"implicit.injection.weight", "implicit.mix_h.weight", "implicit.block.attn.qkv.bias"} <= renamed.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    again = build(seed=1)
    load_weights(again, tmp_path)
    for opened in (again, FixedPointDiT.from_pretrained(tmp_path)):
        for name, value in model.state_dict().items():
            assert torch.equal(value, opened.state_dict()[name]), name
    with pytest.raises(RuntimeError, match="mix_x"):
        again.load_state_dict(renamed | {"implicit.mix_x.weight": torch.zeros(1)})


def test_the_order_of_parameters_is_what_it_was():
    """An optimizer's state is stored by position, so a resumed run needs the old order."""
    names = [name for name, _ in ImplicitLayer(D, 2).named_parameters()]
    assert [name.split(".")[-2] for name in names[:7]] == ["project"] * 2 + ["mix_h"] + ["mix_u"] * 2 + ["mix_out"] * 2
    assert all(name.startswith("blocks.0.") for name in names[7:])


def test_adaptive_solves_and_acceleration_with_two_lanes_and_embeddings():
    model = build(injection="lanes", loop_embedding=2)
    x, t, y = inputs()
    with torch.no_grad():
        output = model(x, t, y, iterations=torch.tensor([1, 4, 2]), tolerance=1e-12, exits=(2, 4))
        assert output.counts.tolist() == [1, 4, 2]
        for row, count in enumerate([1, 4, 2]):
            alone = [part[row : row + 1] for part in (x, t, y)]
            expected = model(*alone, iterations=count, exits=(2, 4))
            torch.testing.assert_close(output.prediction[row : row + 1], expected.prediction)
            for ours, theirs in zip(output.early, expected.early, strict=True):
                torch.testing.assert_close(ours[row : row + 1], theirs)
        plain, fast = (model(x, t, y, iterations=5, anderson=memory) for memory in (0, 3))
        assert fast.fallbacks.shape == (3,) and not torch.equal(plain.solution, fast.solution)


@pytest.mark.parametrize("tolerance", [None, 1e-9])
def test_exits_of_accelerated_solves_are_the_predictions_of_shorter_ones(tolerance):
    """An accelerated step, which the next update may reject, is not yet a solution."""
    model = build()
    with torch.no_grad():
        full = model(*inputs(), iterations=6, anderson=3, exits=(3, 4, 5), tolerance=tolerance)
        for updates, early in zip((2, 3, 4), full.early, strict=True):
            shorter = model(*inputs(), iterations=updates, anderson=3, tolerance=tolerance)
            torch.testing.assert_close(early, shorter.prediction)


def test_exits_are_the_predictions_of_shorter_solves():
    model = build(implicit_depth=2, injection="add")
    full = model(*inputs(), iterations=4, iterations_no_grad=1, exits=(3, 7, 19))
    for updates, early in zip((1, 3, 5), full.early, strict=True):
        torch.testing.assert_close(early, model(*inputs(), iterations=updates).prediction)
    for number in (0, 4, 6):
        said = rf"exits=\({number},\): exits are after 1 to 3 block passes, or after whole updates of 2, as in 5"
        with pytest.raises(ValueError, match=said):
            model(*inputs(), iterations=2, exits=(number,))


@pytest.mark.parametrize(("injection", "number"), [("mlp", 1), ("lanes", 2), ("add", 3), ("add", 4)])
def test_an_exit_of_the_first_update_is_that_of_its_blocks(injection, number):
    """A DiT of the pre blocks and the loop's first ones, with the early head, predicts the same; wherever gradients
    start. Only what comes before an exit learns from it."""
    settings = {"pre_depth": 2, "implicit_depth": 3, "pre_post_timestep_conditioning": True}
    model = build(injection=injection, early_head=number, **settings)
    nn.init.normal_(model.early_layer.linear.weight)
    dit = DiT(4, 2, 3, D, number, 2, 3).eval()
    weights = {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "pre_blocks":
            weights[f"blocks.{rest}"] = value
        elif name.startswith("implicit.blocks."):
            index, _, rest = name.removeprefix("implicit.blocks.").partition(".")
            weights[f"blocks.{2 + int(index)}.{rest}"] = value
        elif part == "early_layer":
            weights[f"final_layer.{rest}"] = value
        elif part.endswith("embedder") or part == "pos_embed":
            weights[name] = value
    dit.load_state_dict({name: value for name, value in weights.items() if name in dit.state_dict()})
    expected = dit(*inputs()).prediction
    assert expected.abs().max() > 0.1
    if injection == "add":  # whose map is random here, and 0 in a new network
        for parameter in model.implicit.injection.parameters():
            nn.init.zeros_(parameter)
    for forward in ({}, {"iterations_no_grad": 2}, {"tolerance": 0.1}, {"recompute": True}):
        output = model(*inputs(), iterations=2, exits=(number, 8), **forward)
        torch.testing.assert_close(output.early[0], expected)
        assert not torch.allclose(output.early[1], expected)
    model.train()
    model(*inputs(), iterations=2, exits=(number,)).early[0].square().sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name in learning if name.startswith(("pre_blocks.", "implicit.blocks."))} == {
        name for name, _ in model.named_parameters()
        for prefix in ["pre_blocks.0.", "pre_blocks.1.", "implicit.blocks.0.", "implicit.blocks.1."][:number]
        if name.startswith(prefix)
    }  # fmt: skip
    assert not any(name.startswith(("final_layer.", "post_blocks.")) for name in learning)


def test_exits_of_a_dit_are_the_predictions_of_its_first_blocks():
    torch.manual_seed(0)
    model = DiT(4, 2, 3, D, 3, 2, 3, early_head=2)
    nn.init.normal_(model.final_layer.linear.weight)
    nn.init.normal_(model.early_layer.linear.weight)
    for block in model.blocks:
        nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.1)
    model.eval()
    x, t, y = inputs()
    output = model(x, t, y, exits=(1, 2))
    shorter = DiT(4, 2, 3, D, 1, 2, 3).eval()
    shorter.load_state_dict({name: value for name, value in model.state_dict().items() if name in shorter.state_dict()})
    torch.testing.assert_close(output.early[0], shorter(x, t, y).prediction)
    shorter = DiT(4, 2, 3, D, 2, 2, 3).eval()
    weights = {name: value for name, value in model.state_dict().items() if name in shorter.state_dict()}
    own = {f"final_layer.{name}": value for name, value in model.early_layer.state_dict().items()}
    shorter.load_state_dict(weights | own)
    torch.testing.assert_close(output.early[1], shorter(x, t, y).prediction)
    with pytest.raises(ValueError, match="exit 4 is not after one of 3 blocks"):
        model(x, t, y, exits=(4,))
    with pytest.raises(ValueError, match="early_head=4: there are only depth=3 blocks"):
        DiT(4, 2, 3, D, 3, 2, early_head=4)
