"""Options of the blocks in both families, each by itself and all together."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fpdm.block_options import MLPS, NORMS, POSITIONS, BlockOptions
from fpdm.config import ModelConfig
from fpdm.data.codec import PixelCodec
from fpdm.loading import make_source
from fpdm.models import Denoiser, block_cost, build_model, forward_cost, load_pretrained
from fpdm.models.adjoint import Adjoint
from fpdm.models.blocks import make_mlp
from fpdm.models.convert import from_published
from fpdm.models.gradients import Gradient
from fpdm.models.norms import RMSNorm, make_norm
from fpdm.models.sizes import SIZES
from fpdm.processes import Diffusion
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.step_memory import AllocationCounter, step_memory

ALL = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "positions": "rotary", "exclude_own_value": True}
OPTIONS = [{"qk_norm": True}, {"norm": "rms"}, {"mlp": "swiglu"}, {"positions": "learned"}, {"positions": "rotary"},
           {"positions": "none"}, {"exclude_own_value": True}, ALL]  # fmt: skip
FAMILIES = {"DiT-XS/2": {}, "FPDM-XS/2": {"iterations": 2, "iterations_no_grad": 1}}
NAMED = {"all" if o is ALL else "-".join(map(str, *o.items())): o for o in OPTIONS}
each_option = pytest.mark.parametrize("options", NAMED.values(), ids=NAMED)
each_family = pytest.mark.parametrize("name", FAMILIES)
some_of_both = pytest.mark.parametrize(  # the two families have the same blocks
    ("name", "options"), [*(("FPDM-XS/2", options) for options in OPTIONS), ("DiT-XS/2", ALL)],
    ids=[*(f"FPDM-{name}" for name in NAMED), "DiT-all"],
)  # fmt: skip


def new(name, **settings) -> Denoiser:
    torch.manual_seed(0)
    sizes = {"input_size": 8, "in_channels": 3, "hidden_size": 32, "num_heads": 2, "num_classes": 3}
    if name.startswith("DiT"):
        sizes["depth"] = 2
    return build_model(name, **sizes | settings)


def random(name, std=0.1, **settings) -> Denoiser:
    """With all weights random, those that begin as 0 too."""
    model = new(name, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return model


def inputs(batch=4):
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([999, 500, 20, 0])[:batch], torch.arange(batch) % 3


def gradients(model, name, autocast=None, **forward):
    model.zero_grad()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = model(*inputs(), drop_labels=torch.tensor([True, False, False, False]), **FAMILIES[name] | forward)
    output.prediction.square().mean().backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


def test_rms_norm_is_torchs_and_its_statistics_are_float32():
    x, norm = torch.randn(2, 5, 32), make_norm("rms", 32)
    assert not list(norm.parameters())
    torch.testing.assert_close(norm(x), F.rms_norm(x, (32,), eps=1e-6))
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    large = (1000 * x).half()  # whose squares float16 cannot hold
    assert norm(large).dtype == torch.float16
    torch.testing.assert_close(norm(large).float(), norm(x), atol=2e-3, rtol=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32


def test_swiglu_is_its_formula():
    mlp, x = make_mlp("swiglu", 48), torch.randn(2, 5, 48)
    (gate, value), (b, c) = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    gated, values = x @ gate.T + b, x @ value.T + c
    expected = (gated * torch.sigmoid(gated) * values) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_swiglu_has_the_parameters_of_gelu(size):
    with torch.device("meta"):
        gelu, swiglu = (sum(p.numel() for p in make_mlp(kind, size.hidden_size).parameters()) for kind in MLPS)
    assert swiglu == pytest.approx(gelu, rel=0.01)


def test_options_are_in_all_blocks_and_heads():
    model = new("FPDM-XS/2", pre_depth=2, implicit_depth=2, early_head=1, **ALL)
    norms = [module for module in model.modules() if isinstance(module, (nn.LayerNorm, RMSNorm))]
    assert len(norms) == 5 * 4 + 2 and all(isinstance(norm, RMSNorm) for norm in norms)
    for block in (*model.pre_blocks, *model.implicit.blocks, *model.post_blocks):
        assert block.attn.rotary and block.attn.exclude_own_value and block.mlp.fc1.out_features == 2 * 88
    assert model.pos_embed is None


@each_family
def test_positions_enter_where_they_should(name):
    """Without any, patches that change places change places in the prediction; with the others, more changes."""
    x, t, y = inputs()
    swapped = x.roll(2, dims=-1)  # by one patch
    for positions in POSITIONS:
        model = random(name, positions=positions).eval()
        forward = {"iterations": 2} if model.iterative else {}
        ours, theirs = (model(image, t, y, **forward).prediction for image in (x, swapped))
        difference = (ours.roll(2, dims=-1) - theirs).abs().max()
        assert difference < 1e-5 if positions == "none" else difference > 1e-2, positions
    learned = new(name, positions="learned")
    assert learned.pos_embed.shape == (1, 16, 32) and 0.015 < learned.pos_embed.std() < 0.025
    torch.testing.assert_close(learned.embed(x), learned.x_embedder(x) + learned.pos_embed)


@each_option
@each_family
def test_a_new_model_begins_as_the_identity(name, options):
    model = new(name, **options).eval()
    tokens = model.embed(inputs()[0])
    for block in model.layers() if name.startswith("DiT") else (*model.stacks()[0], *model.implicit.blocks):
        assert torch.equal(block(tokens, block.modulation(torch.randn(4, 32))), tokens)
    assert not model(*inputs(), **({"iterations": 2} if model.iterative else {})).prediction.any()


@each_option
@each_family
def test_it_trains_samples_and_opens_as_it_was(name, options, tmp_path):
    model = random(name, **options).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(model, name).values())
    optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())
    model.save_pretrained(tmp_path)
    opened = load_pretrained(tmp_path)
    assert opened.options == model.options == BlockOptions(**options)
    config = SamplingConfig(steps=2, **({"iterations": 2} if model.iterative else {}))
    images = []
    for one in (model.eval(), opened, type(model).from_pretrained(tmp_path).eval()):
        source = make_source(one, Diffusion(), PixelCodec(), cost=block_cost(one))
        images.append(sample_images(source, config, plan_for(source, config), range(3)))
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


@each_option
def test_what_goes_through_the_update_works_unchanged(options):
    """Checkpointing, Anderson acceleration, samples that leave the batch, other gradients."""
    name = "FPDM-XS/2"
    model = random(name, std=0.05, injection="decay", implicit_depth=2, **options).eval()
    plain, recomputed = gradients(model, name), gradients(model, name, recompute=True)
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)
    with torch.no_grad():
        output = model(*inputs(), iterations=torch.tensor([3, 1, 4, 2]), tolerance=1e-12)
        for row, count in enumerate([3, 1, 4, 2]):
            alone = model(*(part[row : row + 1] for part in inputs()), iterations=count).prediction
            torch.testing.assert_close(output.prediction[row : row + 1], alone, atol=1e-4, rtol=1e-4)
        exact, fast = (model(*inputs(), iterations=count, anderson=memory).prediction
                       for count, memory in ((60, 0), (12, 3)))  # fmt: skip
        torch.testing.assert_close(fast, exact, atol=1e-3, rtol=1e-3)
    adjoint = Gradient(adjoint=Adjoint("anderson", 1e-6, 60))
    through = gradients(model, name, iterations=40, iterations_no_grad=0)
    implicit = gradients(model, name, iterations=1, iterations_no_grad=40, gradient=adjoint)
    for key, gradient in through.items():
        torch.testing.assert_close(implicit[key], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-2, msg=key)
    v = torch.randn(4, 16, 32)
    model(*inputs(), iterations=2, gradient=Gradient(jacobian=v)).jacobian.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@some_of_both
def test_sixteen_bits_stay_near_float32(name, options, dtype):
    model = random(name, **options)
    exact, mixed = gradients(model, name), gradients(model, name, autocast=dtype)
    distance = sum(float((mixed[key] - exact[key]).square().sum()) for key in exact) ** 0.5
    assert distance < 0.05 * sum(float(part.square().sum()) for part in exact.values()) ** 0.5


@some_of_both
def test_costs_are_what_torch_counts(name, options):
    with torch.device("meta"):
        model = new(name, **options)
    x, index = torch.empty(1, 3, 8, 8, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    cost, updates = forward_cost(model), {"iterations": 5} if model.iterative else {}
    with FlopCounterMode(display=False) as counter:
        model.eval()(x, index, index, **updates)
    assert cost.flops(5 if updates else None) == counter.get_total_flops()
    with torch.device("meta"):
        plain = forward_cost(new(name))
    more = 2 * 16 * (3 * 32 * 88 - 2 * 32 * 128) if options.get("mlp") == "swiglu" else 0  # width 88 instead of 128
    assert cost.update_flops - plain.update_flops == (more if model.iterative else 0)
    assert cost.explicit_flops - plain.explicit_flops == 2 * more  # two explicit blocks


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@some_of_both
def test_memory_of_a_step_is_what_a_real_one_needs(name, options, half):
    model = new(name, **options).train()
    x, index = torch.randn(32, 3, 8, 8), torch.zeros(32, dtype=torch.long)
    with AllocationCounter([*model.parameters(), *model.buffers(), x, index]) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(x, index, index, drop_labels=index.bool(), **FAMILIES[name])
        activations = counter.live
        output.prediction.square().mean().backward()
    memory = step_memory(model, 32, half, False, **FAMILIES[name])
    assert memory.activations == pytest.approx(activations, rel=0.05)
    assert memory.peak - 2 * memory.weights - memory.optimizer == pytest.approx(counter.peak, rel=0.05)


def test_settings_reach_the_network():
    config = ModelConfig("FPDM-XS/2", **ALL)
    model = build_model(config.name, input_size=8, **{"class_dropout": 0.1} | config.overrides())
    assert model.options == BlockOptions(**ALL)
    assert not any(key in ModelConfig().overrides() for key in ALL)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "batch"}, "norm='batch': choose one of layer, rms"),
        ({"mlp": "relu"}, "mlp='relu': choose one of gelu, swiglu"),
        ({"positions": "alibi"}, "positions='alibi': choose one of sincos, learned, rotary, none"),
        ({"positions": "rotary", "num_heads": 16},
         "positions=rotary with hidden_size=32 and num_heads=16: a head is 2 wide, and must be a multiple of 4"),
        ({"exclude_own_value": True, "num_heads": 32}, "exclude_own_value=true with .*num_heads=32: in heads 1 wide"),
        *(({**options, "patch_size": 8}, "with a single token: there is nothing to attend to; leave it out")
          for options in ({"qk_norm": True}, {"positions": "rotary"}, {"exclude_own_value": True})),
        *(({**options, "depth": 0}, "in a network without blocks has no effect; leave it out")
          for options in ({"qk_norm": True}, {"mlp": "swiglu"}, {"positions": "rotary"}, {"exclude_own_value": True})),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        new("DiT-XS/2", **settings)
    if "depth" not in settings:
        with pytest.raises(ValueError, match=said):
            new("FPDM-XS/2", **settings)


def test_settings_are_refused_before_the_network_is_built():
    for name, choices in (("norm", NORMS), ("mlp", MLPS), ("positions", POSITIONS)):
        with pytest.raises(ValueError, match=rf"model\.{name}='x': choose one of {', '.join(choices)}"):
            ModelConfig(**{name: "x"})


@pytest.mark.parametrize("options", [option for option in OPTIONS if option is not ALL], ids=str)
def test_published_weights_have_the_blocks_of_the_paper(options, recorded):
    ((name, value),) = options.items()
    data = recorded("dit")
    with pytest.raises(ValueError, match=f"{name}={value}: the published models have .*; leave {name} out"):
        from_published(data.state, **data.config, **options)
