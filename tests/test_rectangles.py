"""Images whose height and width differ, from the VAE to the score."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch.nn import functional as F

import fpdm
from fpdm.commands.train import make_preview
from fpdm.config import (
    DataConfig,
    DiffusionConfig,
    EncodeConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    VAEConfig,
    ValidationConfig,
)
from fpdm.data.batches import centre_crop, to_signed
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore
from fpdm.evaluation import features
from fpdm.evaluation.classifier import ClassifierFacts, ResidualClassifier
from fpdm.evaluation.evaluate import evaluate, make_reference
from fpdm.loading import load_source
from fpdm.models import build_model
from fpdm.pipeline import FPDMPipeline
from fpdm.sampling.folder import sample_to_folder
from fpdm.training.dry_run import describe_run
from fpdm.training.loop import train
from fpdm.training.vae import train_vae
from fpdm.validation import SampledDistance

HEIGHT, WIDTH = 16, 24
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Features are kept in results/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory, image_folder, tiny_vae):
    """A store of `image_folder` at 16x24: 24 records of 4x8x12, both flips."""
    folder = tmp_path_factory.mktemp("rectangles") / "latents"
    config = EncodeConfig(resolution=[HEIGHT, WIDTH], batch_size=10)
    encode(open_images(image_folder), open_codec(str(tiny_vae)), folder, config, CPU)
    return folder


def experiment(store, results, name="FPDM-XS/2", depth=None, **sections) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(name=name, hidden_size=32, num_heads=2, depth=depth),
        data=DataConfig(latents=str(store)),
        optim=OptimConfig(steps=2, batch_size=4),
        run=RunConfig(results=str(results)),
        **sections,
    )


def test_store_holds_the_latents_of_the_crops(store, image_folder, tiny_vae):
    opened, images = LatentStore(store), open_images(image_folder)
    assert (opened.manifest.resolution, opened.manifest.shape) == ([HEIGHT, WIDTH], [4, 8, 12])
    crop = np.array(centre_crop(images.load(5), (HEIGHT, WIDTH)))
    x = to_signed(torch.from_numpy(crop).permute(2, 0, 1)[None])
    for mirrored, view in ((False, x), (True, x.flip(-1))):
        found = opened.read(np.array([5]), np.array([mirrored])).moments().mean
        torch.testing.assert_close(found, open_codec(str(tiny_vae)).encode(view).mean, atol=2e-3, rtol=0)


def test_store_of_a_square_is_written_as_ever(tiny_store, image_folder, tiny_vae, tmp_path):
    config = EncodeConfig(resolution=[16, 16], batch_size=10)
    encode(open_images(image_folder), open_codec(str(tiny_vae)), tmp_path / "latents", config, CPU)
    assert (tmp_path / "latents" / "manifest.json").read_text() == (tiny_store / "manifest.json").read_text()
    assert json.loads((tiny_store / "manifest.json").read_text())["resolution"] == 16


@pytest.mark.parametrize("resolution", [[16, 15], [15, 16]])
def test_resolution_that_the_vae_cannot_take(resolution, image_folder, tiny_vae, tmp_path):
    config = EncodeConfig(resolution=resolution)
    with pytest.raises(ValueError, match=rf"resolution={'x'.join(map(str, resolution))}: not a multiple of 2, the VAE"):
        encode(open_images(image_folder), open_codec(str(tiny_vae)), tmp_path / "a", config, CPU)


def test_latents_that_the_patch_does_not_divide(store, tmp_path):
    with pytest.raises(ValueError, match="patch_size=8 does not divide input_size=8x12"):
        train(experiment(store, tmp_path, "DiT-XS/8"))


def test_vae_trains_on_rectangles(image_folder):
    config = VAEConfig(resolution=[HEIGHT, WIDTH], widths=(8, 8), steps=2, batch_size=4)
    vae = train_vae(open_images(image_folder), config, CPU)
    assert vae.encode(torch.zeros(1, 3, HEIGHT, WIDTH)).latent_dist.mean.shape == (1, 4, 8, 12)
    vae.enable_tiling()
    assert vae.decode(torch.zeros(1, 4, 8, 12)).sample.shape == (1, 3, HEIGHT, WIDTH)


def test_dry_run_without_a_store_counts_the_same(store, tmp_path):
    config = experiment(store, tmp_path, "DiT-XS/2", depth=1)
    there = describe_run(config, 1, None)
    config.data = DataConfig(latents="none", shape=[4, 8, 12], classes=3)
    texts = [text.split(config.model.name)[-1] for text in (there, describe_run(config, 1, None))]
    assert texts[0] == texts[1] and "TFLOPs" in texts[0]
    config.data.shape = [4, 12, 12]
    assert describe_run(config, 1, None).split(config.model.name)[-1] != texts[0]


@pytest.fixture
def classifier(tmp_path) -> str:
    """The folder of an untrained one for 24x24 images: as wide as ours, but higher."""
    torch.manual_seed(0)
    ResidualClassifier(ClassifierFacts("made", 24, [8, 8, 12], ["ant", "bee", "cow"])).save(tmp_path / "classifier")
    return str(tmp_path / "classifier")


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_from_store_to_score(name, store, image_folder, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CNN_STEPS", 3)
    config = experiment(store, tmp_path / "runs", name)
    config.run.preview_every = 2
    run = train(config, on_preview=make_preview(config))
    assert Image.open(run / "samples" / "0000002.png").size[0] % (WIDTH + 2) == 2
    (config,) = {path.read_text() for path in run.glob("checkpoints/0*/ema/config.json")}
    assert json.loads(config)["input_size"] == [8, 12]

    source = load_source(run, device="cpu")
    folder = sample_to_folder(source, tmp_path / "samples", 5, batch_size=3, trace=2, budget=24)
    assert source.latent_shape == (4, 8, 12)
    assert Image.open(folder / "000000.png").size == (WIDTH, HEIGHT)
    assert Image.open(folder / "grid.png").size == (2 * (WIDTH + 2) + 2, 3 * (HEIGHT + 2) + 2)
    assert np.load(folder / "samples.npz")["arr_0"].shape == (5, HEIGHT, WIDTH, 3)
    assert Image.open(folder / "trace" / "filmstrip.png").height == 2 * (HEIGHT + 2) + 2

    for extractor in ("cnn", "classifier"):
        settings = {"features": extractor, "classifier": classifier, "keep": 5, "cache": tmp_path / "cache"}
        scores, again = (evaluate(samples, image_folder, **settings) for samples in (folder, folder / "samples.npz"))
        assert scores["resolution"] == [HEIGHT, WIDTH]
        distances = [value for key, value in scores.items() if key.startswith("FD")]
        assert distances and np.isfinite(distances).all()
        assert distances == pytest.approx([value for key, value in again.items() if key.startswith("FD")])


def test_classifier_sees_the_whole_rectangle_as_its_square(classifier):
    model = ResidualClassifier.load(classifier)
    image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    x = F.interpolate(image / 127.5 - 1, (24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.pool(image), model.stages(x).mean((2, 3)))


def test_reference_file_of_a_height_and_a_width(image_folder, classifier, tmp_path):
    settings = {"features": "classifier", "classifier": classifier}
    for resolution in ([HEIGHT, WIDTH], [WIDTH, HEIGHT]):
        make_reference(image_folder, tmp_path / f"{resolution[0]}.npz", resolution=resolution, **settings)
    pixels = np.random.default_rng(0).integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", pixels)
    from_file = evaluate(tmp_path / "samples.npz", tmp_path / f"{HEIGHT}.npz", **settings)
    from_images = evaluate(tmp_path / "samples.npz", image_folder, **settings)
    distance = next(key for key in from_file if key.startswith("FD"))
    assert from_file[distance] == pytest.approx(from_images[distance], rel=1e-6)
    with pytest.raises(ValueError, match=r"made with resolution \[24, 16\], this is for \[16, 24\]; make another"):
        evaluate(tmp_path / "samples.npz", tmp_path / f"{WIDTH}.npz", **settings)


def test_validation_samples_rectangles(store, image_folder, classifier, tmp_path):
    settings = {"features": "classifier", "weights": classifier, "samples": 6, "budget": 12, "iterations": [1]}
    config = experiment(store, tmp_path, validation=ValidationConfig(reference=str(image_folder), **settings))
    model = build_model("FPDM-XS/2", input_size=[8, 12], num_classes=3, hidden_size=32, num_heads=2)
    assert np.isfinite(list(SampledDistance(config)(model.eval()).values())).all()


def test_a_flow_of_rectangles(store, tmp_path):
    source = load_source(train(experiment(store, tmp_path, diffusion=DiffusionConfig(process="flow"))), device="cpu")
    assert source.process.kind == "flow" and source.latent_shape == (4, 8, 12)
    assert fpdm.sample(source, 2, steps=2, sampler="ab2", shift=2.0).shape == (2, 3, HEIGHT, WIDTH)


def test_pipeline_returns_rectangles(store, tmp_path):
    pipe = FPDMPipeline.from_pretrained(train(experiment(store, tmp_path / "runs")))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "saved")
    opened = FPDMPipeline.from_pretrained(tmp_path / "saved")
    opened.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    asked = {"num_inference_steps": 2, "iterations": 2, "latents": noise}
    images = pipe([0, 1], output_type="np", **asked).images
    assert images.shape == (2, HEIGHT, WIDTH, 3)
    assert np.array_equal(images, opened([0, 1], output_type="np", **asked).images)
    assert [image.size for image in pipe([0, 1], **asked).images] == [(WIDTH, HEIGHT)] * 2
    with pytest.raises(ValueError, match=r"latents have shape \(2, 4, 12, 8\); the shape must be \(2, 4, 8, 12\)"):
        pipe([0, 1], num_inference_steps=2, latents=noise.mT)
