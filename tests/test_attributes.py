"""Models conditioned on attributes, from images with a table to samples, exports and pipelines."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

import fpdm
from fpdm import cli
from fpdm.commands.sample import Settings as SampleSettings
from fpdm.commands.train import make_preview
from fpdm.conditionings import CONDITIONINGS, AttributeEmbedder
from fpdm.config import (
    DataConfig,
    DiffusionConfig,
    EncodeConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SJFBConfig,
    ValidationConfig,
)
from fpdm.data.attribute_files import with_attributes
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.evaluation.classifier import ClassifierFacts, ResidualClassifier
from fpdm.export import export_model
from fpdm.loading import load_checkpoint, load_source, make_source
from fpdm.pipeline import FPDMPipeline
from fpdm.sampling.folder import sample_to_folder
from fpdm.sampling.plan import Plan, Step
from fpdm.sampling.settings import SamplingConfig
from fpdm.training.dry_run import describe_run
from fpdm.training.loop import train
from fpdm.training.start import Init
from fpdm.validation import SampledDistance

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
NAMES = ["level", "tilt"]
FAMILIES = ["FPDM-XS/4", "DiT-XS/4"]
SOLVED = {"FPDM-XS/4": {"iterations": 2}, "DiT-XS/4": {}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Samples lie where they are asked for, and accelerate keeps nothing of the last test."""
    monkeypatch.chdir(tmp_path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def made(root, count, seed):
    """Grey 8x8 images in a folder, as bright as `level` says and by `tilt` brighter to the right, and a CSV of both.
    The images of a pair (level, tilt) are a Gaussian around a known mean."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    rows = ["image,level,tilt"]
    for i in range(count):
        level, tilt = 1000 + rng.integers(-50, 51), rng.choice([-1, 1])
        grey = level - 1000 + 128 + 20 * tilt * (np.arange(8) - 3.5) + rng.normal(0, 4, (8, 8))
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / f"{i}.png")
        rows.append(f"{i}.png,{level},{tilt}")
    (root / "table.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return made(tmp_path_factory.mktemp("made") / "images", 128, 0)


def store_of(images, folder, resolution=8):
    config = EncodeConfig(resolution=resolution, mirror=False)
    encode(with_attributes(open_images(images), images / "table.csv"), open_codec("pixels"), folder, config, CPU)
    return folder


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    return store_of(images, tmp_path_factory.mktemp("store") / "latents")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("held-out")
    return store_of(made(root / "images", 20, 1), root / "latents")


def experiment(store, results, name="FPDM-XS/4", model=None, optim=None, run=None, **sections) -> ExperimentConfig:
    depth = {"depth": 4} if name.startswith("DiT") else {}
    sizes = {"hidden_size": 32, "num_heads": 2, "conditioning": "attributes", **depth}
    return ExperimentConfig(
        model=ModelConfig(name, **sizes | (model or {})),
        sjfb=SJFBConfig(no_grad=1, grad=2),
        data=DataConfig(latents=str(store), mirror=False),
        optim=OptimConfig(**{"steps": 4, "batch_size": 8, **(optim or {})}),
        run=RunConfig(results=str(results), **(run or {})),
        **sections,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, store, tmp_path_factory):
    """A run long enough that the attributes are learned, with its family's name."""
    optim = {"steps": 300, "batch_size": 32, "lr": 4e-3, "warmup": 20, "ema_decay": 0.98}
    run = train(experiment(store, tmp_path_factory.mktemp("runs"), request.param, optim=optim))
    AcceleratorState._reset_state(reset_partial_state=True)
    return request.param, run


def sampled(source, count=8, batch_size=64, **settings):
    return fpdm.sample(source, count, batch_size, steps=6, **settings)


def test_images_follow_their_attributes(trained):
    name, run = trained
    source = load_source(run, device="cpu")
    corners = [{"level": level, "tilt": tilt} for level in (960, 1040) for tilt in (-1, 1)]
    pixels = sampled(source, 64, attributes=corners, **SOLVED[name]).float()[:, 0].unflatten(0, (-1, 4))
    dark_left, dark_right, bright_left, bright_right = pixels.mean((0, 2))  # (8,) each: the mean of every column
    for dark, bright in ((dark_left, bright_left), (dark_right, bright_right)):
        assert 50 < float(bright.mean() - dark.mean()) < 110  # 80 in the data
    for left, right in ((dark_left, dark_right), (bright_left, bright_right)):
        slopes = [float(columns[4:].mean() - columns[:4].mean()) for columns in (left, right)]
        assert slopes[1] - slopes[0] > 40  # 160 in the data


def test_images_do_not_depend_on_the_batch(trained):
    name, run = trained
    source = load_source(run, device="cpu")
    given = {"attributes": [{"level": 950}, {"tilt": 1, "level": 1000.5}, {}], **SOLVED[name]}
    whole, parts = sampled(source, 7, **given), sampled(source, 7, 1, **given)
    assert (whole.int() - parts.int()).abs().max() <= 1
    folder = sample_to_folder(source, "some", 3, steps=6, **given)
    sample_to_folder(source, "some", 7, steps=6, batch_size=2, **given)
    found = torch.from_numpy(np.load(folder / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    assert (whole.int() - found.int()).abs().max() <= 1
    recipe = json.loads((folder / "samples.json").read_text())
    assert recipe["sampling"]["attributes"] == given["attributes"] and recipe["sampling"]["classes"] is None
    with pytest.raises(ValueError, match=r"sampling\.attributes was \[\{'level': 950\}, .* is None\); choose another"):
        sample_to_folder(source, "some", 7, steps=6, **SOLVED[name])
    assert not torch.equal(sampled(source, 7, **SOLVED[name]), whole)


def watched(source):
    """The source, and a list of the attributes of its calls."""
    seen = []

    def denoise(x, t, y, **kwargs):
        seen.append(y.clone())
        return source.denoise(x, t, y, **kwargs)

    return source._replace(denoise=denoise), seen


def test_what_is_not_given_is_that_of_a_training_image(trained, images):
    name, run = trained
    lines = (images / "table.csv").read_text().splitlines()[1:]
    rows = np.array([[float(value) for value in line.split(",")[1:]] for line in lines], np.float32)
    source, seen = watched(load_source(run, device="cpu"))
    sampled(source, 40, **SOLVED[name])
    assert all((rows == row.numpy()).all(1).any() for row in seen[0]) and len(seen[0].unique(dim=0)) > 20
    drawn = seen[0]
    seen.clear()
    sampled(source, 40, attributes=[{"tilt": 0.25}, {}], **SOLVED[name])
    assert torch.equal(seen[0][1::2], drawn[1::2]) and torch.equal(seen[0][::2, 0], drawn[::2, 0])
    assert seen[0][::2, 1].eq(0.25).all()
    seen.clear()
    sampled(source, 2, attributes=[{"level": 3, "tilt": 4}], seed=5, **SOLVED[name])
    assert seen[0].tolist() == [[3, 4]] * 2


def test_guidance_goes_from_null_to_beyond(trained):
    name, run = trained
    source, seen = watched(load_source(run, device="cpu"))
    given = {"attributes": [{"level": 960, "tilt": 1}, {"level": 1040, "tilt": 1}], **SOLVED[name]}
    plain, guided = sampled(source, 32, **given).float(), sampled(source, 32, cfg_scale=2.0, **given).float()
    assert len(seen[-1]) == 64 and seen[-1][32:].isnan().all() and not seen[-1][:32].isnan().any()
    contrasts = [float(pixels[1::2].mean() - pixels[::2].mean()) for pixels in (plain, guided)]
    assert contrasts[1] > contrasts[0] + 10
    null = sampled(source, 32, cfg_scale=0.0, **given).float()
    assert abs(float(null[1::2].mean() - null[::2].mean())) < contrasts[0] / 2  # nothing of the attributes is left


def test_exported_and_as_a_pipeline_it_is_the_same(trained, run_sampler, tmp_path):
    name, run = trained
    model, facts, checkpoint = load_checkpoint(run)
    assert json.loads((checkpoint / "ema" / "sampling.json").read_text())["attribute_names"] == NAMES
    export_model(tmp_path / "exported", model, facts, None, {})
    assert "| attributes | level, tilt |" in (tmp_path / "exported" / "README.md").read_text()
    settings = {"attributes": [{"tilt": 1}], **SOLVED[name]}
    images = sampled(load_source(run, device="cpu"), **settings)
    for other in (tmp_path / "exported", checkpoint / "ema"):
        assert torch.equal(sampled(load_source(other, device="cpu"), **settings), images)

    pipe = FPDMPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[960.0, 1.0], [1040.0, -1.0]])
    asked = {"num_inference_steps": 5, "latents": noise, "output_type": "latent", "guidance_scale": 1.5, **SOLVED[name]}
    found = pipe(attributes=y.tolist(), **asked).images
    times = [int(t) for t in pipe.scheduler.timesteps] + [-1]
    steps = tuple(Step(t, then, SOLVED[name].get("iterations")) for t, then in pairwise(times))
    source = make_source(pipe.model, pipe.process, pipe._codec(), attributes=facts["attributes"])
    guidance = SamplingConfig(steps=5, cfg_scale=1.5).guidance
    expected = run_sampler(source, Plan(steps, source.cost), noise, y, guidance=guidance)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)

    pipe.save_pretrained(tmp_path / "saved")
    opened = FPDMPipeline.from_pretrained(tmp_path / "saved")
    opened.set_progress_bar_config(disable=True)
    for given in (y, y.numpy(), [dict(zip(NAMES[::-1], row[::-1], strict=True)) for row in y.tolist()]):
        assert torch.equal(opened(attributes=given, **asked).images, found)
    one = asked | {"latents": noise[:1]}
    torch.testing.assert_close(opened(attributes=y[0].tolist(), **one).images, found[:1], atol=1e-4, rtol=1e-4)
    assert np.array_equal(opened.facts["attributes"].vectors, facts["attributes"].vectors)
    (tmp_path / "saved" / "attributes.safetensors").unlink()
    with pytest.raises(ValueError, match=r"attributes\.safetensors is missing or damaged .* copy it from where"):
        FPDMPipeline.from_pretrained(tmp_path / "saved")


@pytest.fixture(scope="module")
def of_classes(tiny_run):
    return load_source(tiny_run, device="cpu"), FPDMPipeline.from_pretrained(tiny_run)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": [0]}, r"classes=\[0\]: this model is conditioned on attributes, level, tilt; give these instead"),
        ({"attributes": [{"leven": 1}]}, "attributes: no 'leven' in this model, which has level, tilt"),
        ({"attributes": [{"level": float("nan")}]}, r"attributes\.level=nan: at least"),
        ({"attributes": [{}, {"tilt": float("inf")}]}, r"attributes\.tilt=inf: at least"),
        ({"attributes": []}, r"attributes=\[\]: give at least one, as in \[\{\}\], or leave it out"),
    ],
)
def test_settings_of_another_conditioning_are_refused(trained, of_classes, settings, says):
    with pytest.raises(ValueError, match=says):
        sampled(load_source(trained[1], device="cpu"), **settings)
    with pytest.raises(ValueError, match="this model is conditioned on classes; leave it out, or give classes"):
        sampled(of_classes[0], attributes=[{"level": 1}])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"class_labels": 1}, "class_labels=1, attributes=None: this model is conditioned on attributes; give"),
        ({}, "class_labels=None, attributes=None: .* give attributes alone"),
        ({"attributes": [[1.0]]}, r"attributes=\[\[1\.0\]\]: give each image a finite number for each of level, tilt"),
        ({"attributes": [{"level": 1.0}]}, "a finite number for each of level, tilt"),
        ({"attributes": [[1.0, float("nan")]]}, "a finite number for each of level, tilt"),
        ({"attributes": [{"level": 1.0, "tild": 1.0}]}, "no 'tild' in this model, which has level, tilt"),
    ],
)  # fmt: skip
def test_a_pipeline_takes_the_conditions_of_its_model(trained, of_classes, given, says):
    pipe = FPDMPipeline.from_pretrained(trained[1])
    with pytest.raises(ValueError, match=says):
        pipe(**given, num_inference_steps=2)
    for mixed in ({"attributes": [[1.0, 2.0]]}, {"class_labels": 1, "attributes": [[1.0]]}, {}):
        with pytest.raises(ValueError, match="conditioned on classes; give class_labels alone"):
            of_classes[1](**mixed, num_inference_steps=2)


def weights(run, step) -> list[bytes]:
    return [(run / "checkpoints" / f"{step:07d}" / name).read_bytes() for name in
            ("model/model.safetensors", "ema/model.safetensors", "ema/attributes.safetensors")]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_is_the_same_bit_for_bit(name, store, tmp_path):
    config = experiment(store, tmp_path, name, run={"checkpoint_every": 2})
    run = train(config)
    whole = weights(run, 4)
    shutil.rmtree(run / "checkpoints" / "0000004")
    train(config, resume=str(run / "checkpoints" / "0000002"))
    assert weights(run, 4) == whole


@pytest.mark.parametrize(
    ("name", "resolution", "process"),
    [("FPDM-XS/4", 8, "flow"), ("DiT-XS/4", [8, 4], "discrete"), ("FPDM-XS/4", [4, 8], "flow")],
    ids=["flow", "rectangles", "flow of rectangles"],
)
def test_attributes_of_flows_and_of_rectangles(name, resolution, process, images, tmp_path):
    """Trained, opened again, and sampled: the attribute has an effect, and the images have the crops' size."""
    store = store_of(images, tmp_path / "latents", resolution)
    config = experiment(store, tmp_path, name, optim={"steps": 3, "lr": 1e-2},
                        diffusion=DiffusionConfig(process=process, learn_sigma=process == "discrete"))  # fmt: skip
    source = load_source(train(config))
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert source.process.kind == process and source.latent_shape == (3, height, width)
    settings = {"steps": 3, "sampler": "heun", "cfg_scale": 3.0, **SOLVED[name]}
    low, high = (fpdm.sample(source, 2, attributes=[{"level": level}], **settings) for level in (900, 1100))
    assert low.shape == (2, 3, height, width) and not torch.equal(low, high)


@pytest.mark.usefixtures("warm_python")
def test_two_processes_train_like_one(store, tmp_path):
    """In parts, so that gradients must be in DDP's buckets before the first."""
    config = experiment(store, tmp_path / "one", optim={"micro_batch_size": 2}, run={"tf32": False})
    config.model.class_dropout = 0.4
    one = train(config)
    config.run.results = str(tmp_path / "two")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "scripts" / "train.py"), "--config", "config.yaml"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two" / one.name
    ours, theirs = (load_checkpoint(run, "model")[0].state_dict() for run in (one, two))
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-4, msg=key)
    assert weights(two, 4)[2] == weights(one, 4)[2]


def test_a_run_starts_from_weights_measures_its_loss_and_previews(trained, store, held_out, tmp_path):
    name, source = trained
    config = experiment(
        store, tmp_path, name, run={"preview_every": 4, "validate_every": 4},
        validation=ValidationConfig(latents=str(held_out), iterations=[1]),
    )  # fmt: skip
    init = Init(str(source), "ema", None, load_checkpoint)
    run = train(config, on_preview=make_preview(config), init=init)
    text = (run / "log.txt").read_text()
    assert "y_embedder             <- 2 of 2 attributes, by name, and the null vector" in text
    assert "128 latents (3, 8, 8), 1 class(es), 2 attribute(s), 1 flip(s)" in text
    assert "validation  loss" in text and (run / "samples" / "0000004.png").is_file()
    told = describe_run(config, 1, None, init)
    assert "2 of 2 attributes, by name" in told and "AttributeEmbedder" in told and "GiB" in told


def test_the_distance_of_conditional_samples_is_measured(trained, images, store, tmp_path):
    name, run = trained
    torch.manual_seed(0)
    ResidualClassifier(ClassifierFacts("made", 8, [8, 8, 12], ["a", "b"])).save(tmp_path / "classifier")
    scoring = {"features": "classifier", "weights": str(tmp_path / "classifier"), "samples": 6, "budget": 12}
    validation = ValidationConfig(reference=str(images), iterations=[1], **scoring)
    measure = SampledDistance(experiment(store, tmp_path, name, validation=validation))
    assert measure.attributes.names == NAMES
    assert np.isfinite(list(measure(load_checkpoint(run)[0]).values())).all()


def test_what_the_data_do_not_have_is_refused(pixel_store, store, held_out, tmp_path):
    with pytest.raises(ValueError, match=r"model\.conditioning=attributes .*the store there has no attributes; encode"):
        train(experiment(pixel_store, tmp_path))
    config = experiment("nowhere", tmp_path)
    config.data = DataConfig(latents="nowhere", shape=[3, 8, 8], classes=1)
    with pytest.raises(
        ValueError, match=r"model\.conditioning=attributes with data\.latents=nowhere: there is no store"
    ):
        describe_run(config, 1, None)
    with pytest.raises(ValueError, match=r"class_dropout=0\.1: the data has one class, so there is no label to drop"):
        train(experiment(store, tmp_path, model={"conditioning": "class"}))
    with pytest.raises(ValueError, match=r"its attribute_names is \[\], .* or with the same attributes"):
        train(experiment(store, tmp_path, validation=ValidationConfig(latents=str(pixel_store))))
    plain = experiment(store, tmp_path, model={"conditioning": "class", "class_dropout": 0.0})
    assert load_source(train(plain), device="cpu").attributes is None  # attributes do not hinder a model of classes


def test_another_embedding_is_one_entry(store, held_out, tmp_path, monkeypatch):
    class Waves(AttributeEmbedder):
        """Cosines of the attributes."""

        def embed(self, y):
            return super().embed(y) + torch.cos(y.nan_to_num().sum(1, keepdim=True))

    monkeypatch.setitem(CONDITIONINGS, "waves", Waves)
    validation = {"validation": ValidationConfig(latents=str(held_out), iterations=[1]), "run": {"validate_every": 4}}
    run = train(experiment(store, tmp_path, model={"conditioning": "waves"}, **validation))
    source = load_source(run, device="cpu")
    assert json.loads((run / "checkpoints/0000004/ema/config.json").read_text())["conditioning"] == "waves"
    assert len(sampled(source, 2, attributes=[{"tilt": 1}], cfg_scale=1.5)) == 2


def test_attributes_on_a_command_line():
    parser = cli.make_parser(SampleSettings, "")
    for words in (["--attributes", "[{Smiling: 1}, {5_o_Clock_Shadow: -1, Male: 0.5}]"],
                  ['--attributes=[{"Smiling": 1}, {"5_o_Clock_Shadow": -1, "Male": 0.5}]']):  # fmt: skip
        found = cli.parse(SampleSettings, parser, ["--ckpt", "x", "--steps", "3", *words]).attributes
        assert found == [{"Smiling": 1}, {"5_o_Clock_Shadow": -1, "Male": 0.5}]
    for word in ("Smiling", "[{Smiling: yes}]", "[Smiling]"):
        with pytest.raises(ValueError, match=r"expected a list of names with numbers, as in \[\{Smiling: 1\}, "):
            cli.parse(SampleSettings, parser, ["--ckpt", "x", "--steps", "3", "--attributes", word])
    paper = SamplingConfig(protocol="paper", attributes=[{"a": 1.0}]).resolved(iterative=True)
    assert paper.attributes == [{"a": 1.0}] and paper.sampler == "ddpm"
