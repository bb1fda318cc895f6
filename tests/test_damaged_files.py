"""Files with wrong values, and archives that claim more than they hold: one error that names file and field."""

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpdm.chain.equal_time import _steps_per_second
from fpdm.commands.export import history
from fpdm.data.codec import open_codec
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore
from fpdm.evaluation.classifier import ResidualClassifier
from fpdm.evaluation.comparison import ScoreBook
from fpdm.evaluation.references import has_images, is_reference, load_reference
from fpdm.evaluation.runs import batch_size, read_run
from fpdm.evaluation.samples import Samples
from fpdm.loading import load_checkpoint
from fpdm.on_gpu.parts import Visit
from fpdm.on_gpu.visit import resume
from fpdm.pipeline import FPDMPipeline
from fpdm.reproduction.contenders import load_trained
from fpdm.training.runlog import forget_after

ROOT = Path(__file__).parents[1]
GONE = object()


def changed(folder: Path, name: str, **values) -> Path:
    """The folder, with other values in one of its JSON files."""
    path = folder / name
    content = json.loads(path.read_text())
    for field, value in values.items():
        content.pop(field) if value is GONE else content.update({field: value})
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shards": -1}, r"manifest\.json: shards=-1: expected a list, each a whole number"),
        ({"shape": [4, 8]}, r"manifest\.json: shape=\[4, 8\]: three numbers"),
        ({"shape": [10**9, 8, 8]}, r"manifest\.json: shape=1000000000: at least 1"),
        ({"flips": 3}, r"manifest\.json: flips=3"),
        ({"count": 7}, r"manifest\.json: shards=\[24\]: not the 7 records"),
        ({"class_names": []}, r"manifest\.json: class_names=\[\]: at least one"),
        ({"class_names": GONE}, r"manifest\.json: class_names is missing"),
        ({"resolutoin": 16}, r"manifest\.json: resolutoin=16: no such field is known"),
        ({"precision": "int4"}, r"manifest\.json: precision='int4'"),
    ],
)
def test_manifest(tiny_store, tmp_path, values, says):
    shutil.copytree(tiny_store, tmp_path / "store")
    with pytest.raises(ValueError, match=says):
        LatentStore(changed(tmp_path / "store", "manifest.json", **values))


def test_a_label_of_no_class(tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    with (tmp_path / "store" / "shard-00000.bin").open("r+b") as file:
        file.write(struct.pack("<i", 3))
    store = LatentStore(tmp_path / "store")
    store.read(np.arange(1, 24))
    with pytest.raises(ValueError, match="a label of none of the 3 classes; the store is damaged"):
        store.read(np.arange(24))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"latent_channels": None}, "latent_channels=None: expected a whole number"),
        ({"scaling_factor": {}}, "scaling_factor={}: expected a number"),
        ({"scaling_factor": 0}, "scaling_factor=0: must be positive"),
        ({"latents_mean": -1}, "latents_mean=-1: expected a list"),
        ({"block_out_channels": []}, r"block_out_channels=\[\]: give at least one"),
        ({"down_block_types": []}, r"down_block_types=\[\]: one for each of the 2 block_out_channels"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, r"up_block_types=.*: one for each of the 2 block_out_channels"),
        ({"block_out_channels": [10**9]}, "block_out_channels=1000000000: at least 1"),
    ],
)
def test_config_of_a_vae(tiny_vae, tmp_path, values, says):
    shutil.copytree(tiny_vae, tmp_path / "vae")
    with pytest.raises(ValueError, match=r"vae/config\.json: " + says):
        open_codec(str(changed(tmp_path / "vae", "config.json", **values)))


@pytest.mark.parametrize("values", [{"down_block_types": ["No", "Such"]}, {"latent_channels": 5}, {"act_fn": 3}])
def test_a_vae_that_diffusers_refuses(tiny_vae, tmp_path, values):
    shutil.copytree(tiny_vae, tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="holds no AutoencoderKL that can be opened"):
        open_codec(str(changed(tmp_path / "vae", "config.json", **values)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"diffusion": -1}, "diffusion=-1: expected an object"),
        ({"diffusion": {"timesteps": "many"}}, "diffusion: timesteps='many': expected a whole number"),
        ({"diffusion": {"timestepz": 3}}, r"diffusion\.timestepz: no such setting"),
        ({"diffusion": {"timesteps": 0}}, r"diffusion\.timesteps=0"),
        ({"diffusion": {"schedule": "sine"}}, r"schedule='sine': choose one of"),
        ({"codec": -1}, "codec=-1: expected a text or null"),
        ({"class_names": GONE}, "class_names is missing"),
    ],
)
def test_facts_of_a_model(tmp_path, values, says):
    shutil.copytree(ROOT / "assets" / "fpdm-digits", tmp_path / "model")
    with pytest.raises(ValueError, match=r"model/sampling\.json: .*" + says):
        load_checkpoint(changed(tmp_path / "model", "sampling.json", **values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_heads": 0}, "num_heads=0: at least 1"),
        ({"hidden_size": "128"}, "hidden_size='128': expected a whole number"),
        ({"pre_depth": 10**9}, "pre_depth=1000000000"),
        ({"hidden_size": 4096}, r"parameters, but the weights are [\d,]+: those of another architecture"),
    ],
)
def test_config_of_a_model(tmp_path, values, says):
    shutil.copytree(ROOT / "assets" / "fpdm-digits", tmp_path / "model")
    with pytest.raises(ValueError, match=r"model/config\.json: .*" + says):
        load_checkpoint(changed(tmp_path / "model", "config.json", **values))


def test_weights_outside_of_the_folder(tmp_path):
    shutil.copytree(ROOT / "assets" / "fpdm-digits", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(ValueError, match="names a file outside of the folder"):
        load_checkpoint(tmp_path / "model")


def test_config_of_a_classifier(tmp_path):
    shutil.copytree(ROOT / "assets" / "cifar10-classifier", tmp_path / "made")
    for values, says in (({"widths": [4]}, "three widths"), ({"widths": -1}, "widths=-1: expected a list")):
        with pytest.raises(ValueError, match=says):
            ResidualClassifier.load(changed(tmp_path / "made", "config.json", **values))


def test_a_member_of_a_zip_that_unpacks_to_too_much(tmp_path):
    """Refused by the size that the zip tells, before anything is unpacked."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/1.png", picture.getvalue())
    content = bytearray((tmp_path / "images.zip").read_bytes())
    at = content.find(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.png unpacks to 4,294,967,294 bytes"):
        open_images(tmp_path / "images.zip").load(0)


@pytest.mark.parametrize("count", [10**6, 300])
def test_an_array_that_unpacks_to_too_much(tmp_path, count):
    """By what its header says, which the file does not hold; and by what it holds, zeros alone."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (count, 64, 64, 3)})
    zeros = bytes(300 * 64 * 64 * 3)
    with zipfile.ZipFile(tmp_path / "samples.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + zeros)
    with pytest.raises(ValueError, match=r"not those of an array|as no images do"):
        Samples(str(tmp_path / "samples.npz"))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu and sigma must be numbers"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "facts": np.array("[]")}, r"facts=\[\]: expected an object"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "facts": np.array("{")}, "damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((4, 3))}, "features float64"),
    ],
)
def test_reference_files(tmp_path, arrays, says):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match=says):
        load_reference(str(tmp_path / "reference.npz"), {})


def test_a_damaged_npz_is_named(tmp_path):
    """A zip whose end is whole and whose list of files is not; an array whose header has braces that do not match."""
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\3"))
    for read in (is_reference, has_images, lambda source: load_reference(source, {})):
        with pytest.raises(ValueError, match=r"reference\.npz: damaged \(.*\); make it again"):
            read(str(path))
    header = io.BytesIO()
    np.save(header, np.zeros((2, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "samples.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue().replace(b"}", b"{", 1))
    with pytest.raises(ValueError, match=r"samples\.npz: cannot be read as npz"):
        Samples(str(tmp_path / "samples.npz"))


CONFIG = "model: {name: DiT-XS/2}\noptim: {batch_size: 8, steps: 10}\nsjfb: {grad: 1, no_grad: 1}\n"


def run_with(folder: Path, config: str = CONFIG, log: str = '{"step": 5, "images_per_s": 2.0}\n') -> Path:
    (folder / "checkpoints" / "0000005").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "log.jsonl").write_text(log)
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("optim: [", "is damaged"),
        ("optim: 3\nmodel: {name: a}\nsjfb: {}", "optim=3: expected an object"),
        (
            CONFIG.replace("10", "many").replace("8", "many"),
            "optim: (steps|batch_size)='many': expected a whole number",
        ),
    ],
)
def test_config_of_a_run(tmp_path, config, says):
    run = run_with(tmp_path / "run", config, '{"step": 50, "images_per_s": 2.0}\n')
    readers = (lambda: history(run / "checkpoints" / "0000005", "ema"), lambda: load_trained(run),
               lambda: _steps_per_second(run), lambda: batch_size(read_run(run)))  # fmt: skip
    for reader in readers:
        with pytest.raises(ValueError, match=rf"config\.yaml:? {says}"):
            reader()


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ('{"step": 5, "images_per_s"\n{"step": 6, "images_per_s": 1}\n', "line 1 is damaged"),
        ('{"step": 5}\n', "line 1: images_per_s is missing"),
        ('{"step": 5, "images_per_s": 0}\n', "images_per_s=0: must be positive"),
    ],
)
def test_log_of_a_run(tmp_path, log, says):
    with pytest.raises(ValueError, match=rf"log\.jsonl: {says}"):
        load_trained(run_with(tmp_path / "run", log=log))


def test_lines_that_a_resumed_run_forgets(tmp_path):
    """Those after its checkpoint, damaged or not; a damaged one before was whole when the checkpoint was written."""
    first, second, later = '{"step": 2}\n', '{"step": 4}\n', '{"step": 6}\n'
    for i, tail in enumerate(("", later, '{"step": 5', f"\0\0\0\n{later}")):
        run = run_with(tmp_path / str(i), log=first + second + tail)
        forget_after(run, 4)
        assert (run / "log.jsonl").read_text() == first + second
    damaged = f"{first}\0\0\0\n{second}{later}"
    run = run_with(tmp_path / "damaged", log=damaged)
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is damaged: expected an object; correct or remove"):
        forget_after(run, 4)
    assert (run / "log.jsonl").read_text() == damaged


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 2], "block_passes is missing"),
        ([1.0, 2.5, 3, 4, 5], "timesteps=2.5: expected a whole number"),
        ([1.0, 2, 3, 4, 5, None, None, 8], ".*expected a list, distance, timesteps"),
        ("nine", "'nine': expected a list, distance, timesteps"),
    ],
)
def test_scores_of_a_comparison(tmp_path, values, says):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"a": [1.0, 2, 3, 4, 5], "b": values}))
    with pytest.raises(ValueError, match=rf"scores\.json: 'b': {says}"):
        ScoreBook(path, torch.nn.Identity(), "", torch.eye(4), 4, 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"what": "tests"}], "entry 1: name is missing"),
        ([{"name": "a", "what": "b", "state": "odd"}], "entry 1: state='odd': choose one of done"),
        ({"name": "a"}, "holds .*: expected a list, each an object"),
    ],
)
def test_parts_of_a_visit(tmp_path, content, says):
    (tmp_path / "parts.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"parts\.json: {says}"):
        resume(Visit(tmp_path, "bf16", 0.0), {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"_class_name": "DiffusionPipeline"}, "_class_name='DiffusionPipeline': diffusers has no scheduler"),
        ({"_class_name": 3}, "_class_name=3: expected a text"),
        ({}, "_class_name is missing"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}, "not the settings of a DDIMScheduler"),
    ],
)
def test_scheduler_of_a_pipeline(tmp_path, content, says):
    shutil.copytree(ROOT / "assets" / "fpdm-digits", tmp_path / "model")
    (tmp_path / "model" / "scheduler").mkdir()
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"scheduler_config\.json: {says}"):
        FPDMPipeline.from_pretrained(tmp_path / "model")
