"""The diffusers pipeline: against our own sampler, with other schedulers, saved, opened and uploaded."""

import json
import warnings
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from fpdm.config import DiffusionConfig
from fpdm.cost import ForwardCost
from fpdm.data.codec import VAECodec, fingerprint
from fpdm.loading import make_source
from fpdm.models import build_model
from fpdm.pipeline import FPDMPipeline
from fpdm.processes import make_process
from fpdm.sampling.guidance import Guidance, InternalGuidance
from fpdm.sampling.plan import Plan, Step, make_plan
from fpdm.sampling.solving import Solving
from fpdm.scheduler_plan import plan_calls
from fpdm.schedulers import default_scheduler

NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(tiny_vae):
    def made(name="FPDM-XS/2", vae=True, class_dropout=0.1, **diffusion):
        torch.manual_seed(0)
        channels = 4 if vae else 3
        settings = DiffusionConfig(**diffusion)
        model = build_model(name, input_size=8, in_channels=channels, num_classes=4, hidden_size=32, num_heads=2,
                            class_dropout=class_dropout, learn_sigma=settings.learn_sigma).eval()  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        opened = AutoencoderKL.from_pretrained(tiny_vae) if vae else None
        facts = {
            "diffusion": asdict(settings),
            "codec": str(tiny_vae) if vae else "pixels",
            "codec_fingerprint": fingerprint(opened) if vae else "pixels",
            "class_names": list("abcd"),
            "latents": None,
        }
        scheduler = default_scheduler(make_process(facts["diffusion"]))
        pipe = FPDMPipeline(model, scheduler, opened, facts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


@pytest.fixture
def ours(run_sampler):
    """Our sampler along the scheduler's timesteps."""

    def run(pipe, iterations, labels=(1, 2), **settings):
        times = [int(t) for t in pipe.scheduler.timesteps] + [-1]
        steps = tuple(Step(t, after, iterations) for t, after in pairwise(times))
        source = make_source(pipe.model, pipe.process, pipe._codec())
        return run_sampler(source, Plan(steps, source.cost), NOISE, torch.tensor(labels), **settings)

    return run


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("reuse", [True, False])
def test_ddim_of_diffusers_is_our_ddim(make, ours, reuse, guidance):
    pipe = make()
    output = pipe([1, 2], budget=42, iterations=4, reuse=reuse, guidance_scale=guidance, latents=NOISE,
                  output_type="latent")  # fmt: skip
    assert len(pipe.scheduler.timesteps) == 7 and output.block_passes == 42 and int(pipe.scheduler.timesteps[0]) == 999
    expected = ours(pipe, 4, solving=Solving(reuse), guidance=Guidance(guidance))
    torch.testing.assert_close(output.images, expected, atol=5e-3, rtol=5e-3)  # its last alpha_bar is not quite 0


@pytest.mark.parametrize(("name", "iterations", "exit_"), [("FPDM-XS/2", 4, 3), ("DiT-XS/2", None, 6)])
def test_both_kinds_of_guidance_in_their_intervals_are_those_of_our_sampler(make, ours, name, iterations, exit_):
    pipe = make(name)
    given = {"guidance_scale": 3.0, "guidance_interval": [0, 600], "internal_guidance": 2.0, "internal_exit": exit_,
             "internal_interval": [300, 999], "num_inference_steps": 7, "iterations": iterations}  # fmt: skip
    found = pipe([1, 2], **given, latents=NOISE, output_type="latent")
    internal = InternalGuidance(2.0, exit_, [300, 999])
    expected = ours(pipe, iterations, guidance=Guidance(3.0, interval=[0, 600], internal=internal))
    torch.testing.assert_close(found.images, expected, atol=5e-3, rtol=5e-3)
    for without in ("guidance_interval", "internal_interval"):
        other = pipe([1, 2], **(given | {without: None}), latents=NOISE, output_type="latent")
        assert (other.images - found.images).abs().max() > 0.05


def test_diffusers_ddim_does_so_where_its_stride_is_right(make):
    """And does not clip latents, which are no pixels."""
    pipe = make()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    images = pipe([1, 2], num_inference_steps=8, iterations=4, latents=3 * NOISE, output_type="latent").images
    assert images.abs().max() > 1.5
    pipe.scheduler = default_scheduler(pipe.process)
    expected = pipe([1, 2], num_inference_steps=8, iterations=4, latents=3 * NOISE, output_type="latent").images
    torch.testing.assert_close(images, expected, atol=1e-2, rtol=1e-2)
    assert not diffusers.DDPMScheduler.from_config(pipe.scheduler.config).config.clip_sample


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_followed_as_by_our_sampler(make, run_sampler, name, shift):
    pipe = make(name, process="flow")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=shift)
    given = {"iterations": 4} if name.startswith("FPDM") else {}
    output = pipe([1, 2], num_inference_steps=6, guidance_scale=2.0, latents=NOISE, output_type="latent", **given)
    source = make_source(pipe.model, pipe.process, pipe._codec())
    plan = make_plan(source.cost, steps=6, times=pipe.process.times(shift), **given)
    expected = run_sampler(source, plan, NOISE, torch.tensor([1, 2]), sampler="euler", guidance=Guidance(2.0))
    torch.testing.assert_close(output.images, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "scheduler",
    [diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler,
     diffusers.FlowMatchHeunDiscreteScheduler],
)  # fmt: skip
def test_other_schedulers_follow_a_flow(make, run_sampler, scheduler):
    """At many steps all of them end where our own second-order solver ends."""
    pipe = make("DiT-XS/2", process="flow")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    output = pipe([1, 2], num_inference_steps=60, latents=NOISE, output_type="latent").images
    source = make_source(pipe.model, pipe.process, pipe._codec())
    plan = make_plan(source.cost, steps=60, times=pipe.process.times())
    expected = run_sampler(source, plan, NOISE, torch.tensor([1, 2]), sampler="ab2")
    assert float((output - expected).square().mean().sqrt()) < 0.03 * float(expected.std())


def test_many_steps_of_a_flow_end_at_finite_pixels(make):
    """diffusers truncates the times of a flow to thousandths, so the last of more steps is 0, where there is no noise
    to divide by."""
    pipe = make(vae=False, process="flow")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    steps, short = 1002, []

    def on_step(pipe, i, t, values):
        short.append(int(t))
        return {"latents": NOISE[:1, :3]} if i < steps - 3 else values  # the end alone is of interest

    pipe.model.forward, whole = lambda *args, **kwargs: found[0], pipe.model.forward
    found = [whole(NOISE[:1, :3], torch.zeros(1), torch.tensor([1]), iterations=1)]
    images = pipe([1], num_inference_steps=steps, iterations=1, latents=NOISE[:1, :3], output_type="latent",
                  callback_on_step_end=on_step).images  # fmt: skip
    assert short[-1] == 0 and len(short) == steps and images.isfinite().all()


def test_schedulers_that_do_not_follow_a_flow_are_refused(make):
    pipe = make(process="flow")
    for scheduler in (diffusers.DDIMScheduler(), diffusers.DPMSolverMultistepScheduler(),
                      diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True)):  # fmt: skip
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__}: does not follow a flow"):
            pipe([1], num_inference_steps=3)


def test_schedulers_of_another_diffusion_are_refused(make):
    pipe = make()
    for scheduler, says in (
        (diffusers.DDIMScheduler(), "other noise levels, this model needs v_prediction"),
        (diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon"), "epsilon, this model"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "not use the noise levels of discrete timesteps; make it"),
    ):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=says):
            pipe([1], num_inference_steps=3)
    zero_snr = {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True}
    pipe.scheduler = diffusers.DDIMScheduler(**zero_snr, prediction_type="v_prediction", timestep_spacing="trailing")
    assert pipe([1], num_inference_steps=4, output_type="pt").images.isfinite().all()  # the same levels, said otherwise


def test_learned_variance_for_schedulers_that_take_it(make):
    pipe = make()
    learned = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, variance_type="learned_range")
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    draws = []
    for scheduler in (learned, diffusers.DDPMScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        draws.append(pipe([1], num_inference_steps=4, generator=seed(), output_type="latent").images)
    assert not torch.equal(*draws)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(learned.config)  # keeps the entry, knows no such thing
    assert pipe([1], num_inference_steps=4, output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("parametrisation", ["v", "x0", "eps"])
def test_every_parametrisation(make, ours, parametrisation):
    zero = parametrisation != "eps"
    pipe = make(parametrisation=parametrisation, zero_terminal_snr=zero)
    images = pipe([1, 2], num_inference_steps=5, iterations=2, latents=NOISE, output_type="latent").images
    torch.testing.assert_close(images, ours(pipe, 2), atol=5e-3, rtol=5e-3)


SCHEDULERS = {
    "DDPMScheduler": 1,
    "DPMSolverMultistepScheduler": 1,
    "UniPCMultistepScheduler": 1,
    "EulerDiscreteScheduler": 1,
    "DEISMultistepScheduler": 1,
    "HeunDiscreteScheduler": 2,
    "KDPM2DiscreteScheduler": 2,
}


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_schedulers_stay_within_the_budget(make, name, reuse):
    pipe = make()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    starts, original = [], pipe.model.forward
    pipe.model.forward = lambda *args, **kwargs: (starts.append(kwargs["init"]), original(*args, **kwargs))[1]
    output = pipe([0, 3], budget=60, iterations=4, reuse=reuse, generator=torch.Generator().manual_seed(0),
                  output_type="pt")  # fmt: skip
    assert output.images.isfinite().all() and output.images.shape == (2, 3, 16, 16)
    calls = len(pipe.scheduler.timesteps)
    assert calls == len(starts) == (10 if SCHEDULERS[name] == 1 else 9)  # two calls a step, but one at the last
    assert output.block_passes == 6 * calls <= 60
    assert starts[0] is None and all((start is not None) == reuse for start in starts[1:])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget": 5, "iterations": 4}, "budget=5 does not hold one step"),
        ({}, "give one of the two"),
        ({"budget": 60, "iterations": 0}, "iterations=0: at least 1"),
        ({"num_inference_steps": 3, "iterations": [1, 2]}, "2 entries, but the scheduler calls the model 3 times"),
        ({"budget": 60, "class_labels": [4]}, r"class_labels=\[4\]: labels of this model are 0\.\.3"),
        ({"budget": -5}, "budget=-5: at least 1"),
        ({"budget": 60.5}, r"budget=60\.5: expected a whole number"),
        ({"budget": 60, "iterations": 2.5}, r"iterations=2\.5: expected a whole number"),
        ({"budget": 60, "guidance_scale": -1.0}, r"guidance_scale=-1\.0: at least 0"),
        ({"budget": 60, "eta": 0.5}, "EulerDiscreteScheduler does not use eta"),
        ({"budget": 60, "generator": [torch.Generator()]}, "generator: 1 generators for 2 labels"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: at least 1"),
        ({"num_inference_steps": 2000}, "num_inference_steps=2000: the model has 1000"),
        ({"budget": 60, "reuse_weight": 7.0}, "reuse_weight=7.0: above 0"),
        ({"budget": 60, "reuse": False, "extrapolation": 1.0}, "extrapolation=1.0 with reuse=false"),
        ({"budget": 60, "output_type": "jpg"}, "output_type='jpg'"),
        (
            {"budget": 60, "guidance_scale": 2.0, "guidance_interval": [0, 2000]},
            "guidance_interval=.*timesteps are 0 to 999",
        ),
        (
            {"num_inference_steps": 2, "internal_guidance": 2.0, "internal_interval": [1, 2]},
            "internal_interval=.*none of the timesteps",
        ),
        ({"budget": 60, "latents": NOISE[:1]}, "latents have shape"),
    ],
)
def test_mistakes_are_said(make, settings, says):
    with pytest.raises(ValueError, match=says):
        make()(**{"class_labels": [1, 2], **settings})


def test_what_a_model_cannot_do(make):
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0: .*no null label"):
        make(class_dropout=0.0)([1], budget=60, guidance_scale=2.0)
    for settings in ({"iterations": 3}, {"reuse": True}, {"anderson": 1}, {"extrapolation": 1.0}):
        with pytest.raises(ValueError, match="an explicit model \\(DiT\\) has no"):
            make("DiT-XS/2")([1], budget=60, **settings)
    assert make("DiT-XS/2")([1], budget=60).block_passes == 60


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("FPDM-XS/2", {"budget": 60, "iterations": 1}, "2: the last exit of a guided call is 2, so .*guides nothing"),
        (
            "FPDM-XS/2",
            {"num_inference_steps": 2, "iterations": [1, 2], "internal_exit": 3},
            "3: the last exit of a guided call is 3",
        ),
        ("DiT-XS/2", {"budget": 60, "internal_exit": 12}, "12: the last exit of a guided call is 12.*smaller exit"),
    ],
)
def test_internal_guidance_that_guides_nothing_is_refused(make, name, settings, says):
    with pytest.raises(ValueError, match=rf"internal_guidance=2\.0 with exit {says}"):
        make(name)([1], internal_guidance=2.0, **settings)
    more = settings | ({"internal_exit": 11} if name.startswith("DiT") else {"iterations": 3})
    assert make(name)([1], internal_guidance=2.0, output_type="latent", **more).images.isfinite().all()


def test_a_budget_beyond_all_timesteps_takes_all_of_them(make):
    """Also with two model calls per step, of which the last one needs only one."""
    pipe = make()
    scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    for budget, calls in ((20_000, 1999), (36, 5)):
        found = plan_calls(scheduler, pipe.process, ForwardCost(2, 1), budget, None, 4, torch.device("cpu"))
        assert len(found) == calls and found[0] == (999.0, 4) and {updates for _, updates in found} == {4}


def test_outputs_and_iterations_of_each_call(make):
    pipe = make()
    settings = {"class_labels": 2, "num_inference_steps": 3, "iterations": [4, 2, 1]}
    seed = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    pil, arrays, tensors = (pipe(**settings, generator=seed(), output_type=kind).images for kind in ("pil", "np", "pt"))
    assert pil[0].size == (16, 16) and arrays.shape == (1, 16, 16, 3) and tensors.shape == (1, 3, 16, 16)
    assert np.abs(np.asarray(pil[0]) / 255 - arrays[0]).max() <= 1 / 255
    torch.testing.assert_close(torch.tensor(arrays).permute(0, 3, 1, 2), tensors)
    images, passes = pipe(**settings, generator=seed(), output_type="pt", return_dict=False)
    assert torch.equal(images, tensors) and passes == 3 * 2 + 7


def test_one_generator_for_each_image(make):
    pipe = make()
    seeds = lambda *numbers: [torch.Generator().manual_seed(n) for n in numbers]  # noqa: E731
    both = pipe([1, 1], budget=24, generator=seeds(5, 6), output_type="pt").images
    again = pipe([1], budget=24, generator=seeds(6), output_type="pt").images
    torch.testing.assert_close(both[1:], again, atol=1e-4, rtol=1e-3)


def test_callback_may_change_the_latents(make):
    seen = []

    def zero(pipe, position, timestep, values):
        seen.append((position, int(timestep)))
        return {"latents": torch.zeros_like(values["latents"])}

    images = make()([1], num_inference_steps=2, callback_on_step_end=zero, output_type="latent").images
    assert seen == [(0, 999), (1, 499)] and not images.any()


def test_sliced_decoding_and_half_precision(make):
    pipe = make()
    plain = pipe([1, 2], budget=24, latents=NOISE, output_type="pt").images
    pipe.enable_vae_slicing()
    torch.testing.assert_close(
        pipe([1, 2], budget=24, latents=NOISE, output_type="pt").images, plain, atol=1e-5, rtol=0
    )
    pipe.to(torch.bfloat16)
    assert pipe.model.dtype == pipe.vae.dtype == torch.bfloat16 and pipe.device.type == "cpu"
    half = pipe([1, 2], budget=24, latents=NOISE, output_type="pt").images
    assert (half - plain).abs().mean() < 0.02


@pytest.mark.parametrize("vae", [True, False], ids=["vae", "pixels"])
def test_saved_and_opened(make, tmp_path, vae):
    pipe = make(vae=vae)
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "pipe", {"training steps": "7"})
    names = {path.name for path in (tmp_path / "pipe").iterdir()}
    assert {"model_index.json", "scheduler", "config.json", "model.safetensors", "sampling.json", "README.md"} <= names
    assert ("vae" in names) == vae and "training steps | 7" in (tmp_path / "pipe" / "README.md").read_text()
    assert json.loads((tmp_path / "pipe" / "model_index.json").read_text())["_class_name"] == "FPDMPipeline"
    opened = FPDMPipeline.from_pretrained(tmp_path / "pipe")
    assert isinstance(opened.scheduler, diffusers.HeunDiscreteScheduler)
    opened.set_progress_bar_config(disable=True)
    draws = [
        p([1, 2], budget=60, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for p in (pipe, opened)
    ]
    torch.testing.assert_close(*draws)
    other = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    half = FPDMPipeline.from_pretrained(tmp_path / "pipe", torch_dtype=torch.bfloat16, scheduler=other)
    assert half.model.dtype == torch.bfloat16 and isinstance(half.scheduler, diffusers.DDPMScheduler)


def test_a_pipeline_in_half_precision_is_saved_in_full(make, tmp_path):
    """What is opened again is the rounded model, VAE included."""
    pipe = make()
    pipe.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "pipe")
    assert pipe.model.dtype == torch.bfloat16
    opened = FPDMPipeline.from_pretrained(tmp_path / "pipe")
    assert opened.model.dtype == opened.vae.dtype == torch.float32
    for ours, theirs in zip(pipe.model.parameters(), opened.model.parameters(), strict=True):
        assert torch.equal(ours.float(), theirs)


def test_numbers_of_numpy_are_numbers(make):
    labels = np.array([1, 2])
    assert len(make()(labels, budget=np.int64(24), iterations=np.int64(2)).images) == 2
    assert len(make()(labels[0], num_inference_steps=np.int64(2)).images) == 1


def test_a_pixel_model_clips_its_predictions(make):
    pipe = make(vae=False)
    pipe.enable_vae_slicing()  # there is nothing to slice
    images = pipe([1, 2], num_inference_steps=4, output_type="latent").images
    assert float(images.abs().max()) <= 1 + 1e-5


def test_uploaded_as_it_is_saved(make, monkeypatch):
    sent = {}

    def upload(repo_id, folder_path, **kwargs):
        sent.update(repo=repo_id, **{p.name: p.stat().st_size for p in Path(folder_path).iterdir()})
        return "https://hub/commit"

    monkeypatch.setattr(
        "fpdm.export.create_repo", lambda repo_id, **kwargs: diffusers.utils.BaseOutput(repo_id=repo_id)
    )
    monkeypatch.setattr("fpdm.export.upload_folder", upload)
    assert make().push_to_hub("someone/fpdm") == "https://hub/commit"
    assert (
        sent["repo"] == "someone/fpdm" and {"README.md", "model.safetensors", "vae", "model_index.json"} <= sent.keys()
    )


def test_the_codec_of_the_pipeline_is_the_one_of_its_vae(make):
    pipe = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(pipe._codec(), VAECodec) and pipe._codec().vae is pipe.vae
