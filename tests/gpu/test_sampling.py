"""Images drawn on the device are the CPU's, whatever the solver and the way to solve; start noise always is."""

from copy import deepcopy

import pytest
import torch

from fpdm.data.codec import open_codec
from fpdm.loading import make_source
from fpdm.models import compile_layers
from fpdm.processes import Diffusion
from fpdm.sampling.generate import plan_for, sample_images
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import SOLVERS

pytestmark = pytest.mark.gpu
IMAGES = range(6)
WAYS = [
    {"reuse": False},
    {"reuse_weight": 0.7},
    {"extrapolation": 1.0},
    {"anderson": 2},
    {"allocation": "decreasing"},
    {"cfg_scale": 2.0},
    {"cfg_scale": 2.0, "cfg_interval": [200, 800], "cfg_channels": 2, "guidance_rescale": 0.7},
    {"eta": 0.7},
    {"sampler": "heun", "extrapolation": 0.5, "reuse_weight": 0.9, "anderson": 3, "cfg_scale": 1.5},
]
ADAPTIVE = [{}, {"anderson": 2, "sampler": "heun"}, {"cfg_scale": 1.5, "extrapolation": 0.5}]


def drawn(network, codec="pixels", precision="no", on_step=None, **settings) -> torch.Tensor:
    """Images (6, 3, R, R) as whole numbers on the CPU, drawn where the network is."""
    network = network.eval()
    on = next(network.parameters()).device
    source = make_source(network, Diffusion(), open_codec(codec, on), precision)
    config = SamplingConfig(**{"steps": 5, **settings})
    with torch.inference_mode():
        return sample_images(source, config, plan_for(source, config), IMAGES, on_step).cpu().int()


def assert_same_images(ours, expected):
    """Up to rounding: of weights that differ by 2e-6 a pixel in a thousand changes, by one level."""
    difference = (ours - expected).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.05
    assert expected.float().std() > 20  # there is something to see


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_solvers_draw_the_cpus_images(network, device, name, sampler):
    assert_same_images(drawn(network(name), sampler=sampler), drawn(network(name, "cpu"), sampler=sampler))


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_ways_to_solve_draw_the_cpus_images(network, settings):
    ours, expected = drawn(network(), **settings), drawn(network(on="cpu"), **settings)
    assert_same_images(ours, expected)
    assert (expected - drawn(network(on="cpu"))).abs().float().mean() > 3  # the way makes a difference


@pytest.mark.parametrize("settings", ADAPTIVE, ids=str)
def test_adaptive_allocation_spends_what_the_cpu_spends(network, device, settings):
    images, counts = [], []
    for on in (device, "cpu"):
        seen = []
        settings = {"allocation": "adaptive", "tolerance": 0.1, **settings}
        images.append(drawn(network(on=on), on_step=lambda i, call, seen=seen: seen.append(call.updates.cpu()),
                            **settings))  # fmt: skip
        counts.append(torch.cat(seen))
    assert torch.equal(*counts) and len(counts[0].unique()) > 2
    assert_same_images(*images)


def test_images_through_a_vae(network, device, tiny_vae):
    overrides = {"input_size": 8, "in_channels": 4}
    ours, expected = (drawn(network(on=on, **overrides), str(tiny_vae), sampler="ab2") for on in (device, "cpu"))
    assert ours.shape == (6, 3, 16, 16)
    assert (ours - expected).abs().max() <= 2 and expected.float().std() > 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"], indirect=True)
@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_half_precision_draws_nearly_the_same(network, name, precision):
    """At smaller weights, where neither the solves nor the path amplify the rounding."""
    full, half = (drawn(network(name, std=0.05), precision=p) for p in ("no", precision))
    difference = (full - half).abs().float()
    assert 0 < difference.mean() < 2 and full.float().std() > 20


WAITLESS = [
    *({"sampler": name} for name in SOLVERS if name != "unipc"),  # diffusers' UniPC sends coefficients from the host
    {"sampler": "ab2", "anderson": 2},
    {"cfg_scale": 2.0, "extrapolation": 0.5, "reuse_weight": 0.9},
]


@pytest.mark.parametrize("codec", ["pixels", "vae"])
@pytest.mark.parametrize("settings", WAITLESS, ids=str)
def test_host_does_not_wait_while_sampling(network, no_waiting, tiny_vae, settings, codec):
    sizes = {"input_size": 8, "in_channels": 4} if codec == "vae" else {}
    source = make_source(network(**sizes).eval(), Diffusion(), open_codec(str(tiny_vae) if sizes else "pixels", "cuda"))
    config = SamplingConfig(steps=4, iterations=3, **settings)
    with torch.inference_mode():
        sample_images(source, config, plan_for(source, config), range(4))  # makes tables and workspaces
        no_waiting()
        images = sample_images(source, config, plan_for(source, config), range(4))
        no_waiting(False)
    assert images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
@pytest.mark.parametrize("graphs", [False, True], ids=["compiled", "graphs"])
def test_compiled_images_are_the_same(request, network, name, graphs):
    """Whatever the iterations, and with solutions kept over timesteps, which a graph's replay must not overwrite."""
    if graphs:
        request.getfixturevalue("cuda")
    torch.compiler.reset()
    eager = network(name)
    compiled = deepcopy(eager)
    compile_layers(compiled, graphs)
    for iterations in (2, 5):
        settings = {"iterations": iterations, "extrapolation": 0.5} if name.startswith("FPDM") else {}
        expected, ours = (drawn(made, cfg_scale=2.0, **settings) for made in (eager, compiled))
        assert_same_images(ours, expected)
