"""What only a GPU can show; skipped, with a reason, where there is none."""

import pytest
import torch

from fpdm.config import SamplingConfig
from fpdm.data.codec import PixelCodec
from fpdm.diffusion import Diffusion
from fpdm.loading import make_source
from fpdm.models import build_model, compile_layers
from fpdm.models.fixed_point_dit import FixedPointDiT
from fpdm.sampling.generate import draw_images, plan_for
from fpdm.training.memory import step_memory

pytestmark = pytest.mark.gpu


def model(name="FPDM-XS/2", **overrides) -> FixedPointDiT:
    torch.manual_seed(0)
    made = build_model(name, **{"input_size": 16, "in_channels": 3, "num_classes": 4, **overrides}).cuda()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def inputs(batch=16):
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(batch, 3, 16, 16, generator=generator, device="cuda")
    return x, torch.arange(batch, device="cuda") * 60, torch.arange(batch, device="cuda") % 4


def peak(network, **kwargs) -> int:
    """Peak bytes allocated by one forward and backward pass."""
    network.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    network(*inputs(), **kwargs).prediction.sum().backward()
    return torch.cuda.max_memory_allocated()


def test_memory_does_not_depend_on_updates_without_gradient():
    network = model(hidden_size=256, num_heads=4).train()
    peak(network, iterations=2, iterations_no_grad=1)
    few, many = (peak(network, iterations=2, iterations_no_grad=n) for n in (1, 30))
    assert many <= few * 1.02
    assert peak(network, iterations=6, iterations_no_grad=1) > few * 1.2


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_expected_memory_is_what_a_step_takes(half, recompute):
    """Weights, gradients and activations, within the rounding and the workspaces that are not counted."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    network = model(hidden_size=384, num_heads=6).train()
    x = torch.randn(64, 3, 16, 16, device="cuda")
    index = torch.zeros(64, dtype=torch.long, device="cuda")
    kwargs = {"iterations": 6, "iterations_no_grad": 3}
    for _ in range(2):  # the first one makes what stays: workspaces, gradients
        network.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.float16, enabled=half):
            output = network(x, index, index, drop_labels=index.bool(), recompute=recompute, **kwargs)
        output.prediction.square().mean().backward()
    expected = step_memory(network, 64, half, recompute, **kwargs)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured == pytest.approx(expected.peak - expected.optimizer - expected.ema, rel=0.25)


def test_recomputation_saves_memory_and_changes_nothing():
    network = model(hidden_size=256, num_heads=4).train()
    gradients, peaks = [], []
    for recompute in (False, True):
        peaks.append(peak(network, iterations=8, recompute=recompute))
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert peaks[1] < 0.6 * peaks[0]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_under_autocast(dtype):
    """Updates without gradient leave the others' gradient whole: those of one long run, cut by detach, agree."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    network = model().train()
    x, t, y = inputs()
    none = torch.zeros_like(y, dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        start = network(x, t, y, iterations=3, drop_labels=none).solution
    gradients = []
    for kwargs in ({"iterations": 2, "iterations_no_grad": 3}, {"iterations": 2, "init": start}):
        network.zero_grad()
        with torch.autocast("cuda", dtype):
            prediction = network(x, t, y, drop_labels=none, **kwargs).prediction
        prediction.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=2e-2, msg=name)


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_images_are_those_of_the_cpu(name):
    network = model(name).eval()
    config = SamplingConfig(steps=4, sampler="ddpm", cfg_scale=1.5)
    on_gpu = make_source(network, Diffusion(), PixelCodec())
    images = draw_images(on_gpu, config, plan_for(on_gpu, config), range(4)).cpu()
    on_cpu = make_source(network.cpu(), Diffusion(), PixelCodec())
    expected = draw_images(on_cpu, config, plan_for(on_cpu, config), range(4))
    assert (images.int() - expected.int()).abs().float().mean() < 1


@pytest.fixture
def no_waiting():
    """What lets any wait of the host for the device raise, from its call on; taken back in the end."""
    yield lambda on=True: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


WAYS = [
    {"sampler": "ddpm"},
    {"sampler": "ddim"},
    {"sampler": "ab2", "anderson": 2},
    {"sampler": "heun"},
    {"sampler": "dpm++"},
]


@pytest.mark.parametrize("settings", [*WAYS, {"cfg_scale": 2.0, "extrapolation": 0.5}], ids=str)
def test_host_does_not_wait_while_sampling(no_waiting, settings):
    source = make_source(model().eval(), Diffusion(), PixelCodec())
    config = SamplingConfig(steps=4, iterations=3, **settings)
    with torch.inference_mode():
        draw_images(source, config, plan_for(source, config), range(4))  # makes tables and workspaces
        no_waiting()
        images = draw_images(source, config, plan_for(source, config), range(4))
        no_waiting(False)
    assert images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
@pytest.mark.parametrize("graphs", [False, True], ids=["compiled", "graphs"])
def test_compiled_images_are_the_same(name, graphs):
    """Whatever the iterations, and with solutions kept over timesteps, which a graph's replay must not overwrite."""
    torch.compiler.reset()
    eager, compiled = model(name).eval(), model(name).eval()
    compile_layers(compiled, graphs)
    for iterations in (2, 5):
        settings = {"iterations": iterations, "extrapolation": 0.5} if name.startswith("FPDM") else {}
        config = SamplingConfig(steps=4, cfg_scale=2.0, **settings)
        images = []
        for network in (eager, compiled):
            source = make_source(network, Diffusion(), PixelCodec())
            with torch.inference_mode():
                images.append(draw_images(source, config, plan_for(source, config), range(8)).int())
        assert (images[0] - images[1]).abs().max() <= 2


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_host_does_not_wait_while_training(pixel_store, tmp_path, monkeypatch, no_waiting, precision):
    """From the third step to the seventh, of which none is logged."""
    from accelerate.state import AcceleratorState

    from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig
    from fpdm.training.ema import EMA
    from fpdm.training.loop import train

    update, calls = EMA.update, []

    def counted(self, *args):
        update(self, *args)
        calls.append(1)
        no_waiting(2 <= len(calls) < 7)

    monkeypatch.setattr(EMA, "update", counted)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(
        ExperimentConfig(
            model=ModelConfig("FPDM-XS/2"),
            data=DataConfig(str(pixel_store)),
            optim=OptimConfig(steps=8, batch_size=8),
            run=RunConfig(results=str(tmp_path), mixed_precision=precision, log_every=8),
        )
    )
    assert len(calls) == 8
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_runs_in_every_precision(pixel_store, tmp_path, precision, compiled):
    from accelerate.state import AcceleratorState

    from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig
    from fpdm.training.loop import train

    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    AcceleratorState._reset_state(reset_partial_state=True)
    config = ExperimentConfig(
        model=ModelConfig("FPDM-XS/2"),
        data=DataConfig(str(pixel_store)),
        optim=OptimConfig(steps=8, batch_size=8, micro_batch_size=4),
        run=RunConfig(
            results=str(tmp_path), mixed_precision=precision, compile=compiled, log_every=4, checkpoint_every=4
        ),
    )
    run = train(config)
    config.optim.steps = 12
    assert train(config, resume=str(run)) == run
    assert (run / "checkpoints" / "0000012").is_dir()
    AcceleratorState._reset_state(reset_partial_state=True)
