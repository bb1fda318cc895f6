"""Training under torchrun with two real processes is training with one: gloo on CPUs, NCCL where there are two GPUs."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fpdm.models import load_pretrained

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two CUDA devices, one a process"),
        ]),
    ]
)  # fmt: skip
def device(request) -> str:
    return request.param


# Of losses, and of weights: on GPUs Adam makes steps of rounding where a gradient is 0.
TOLERANCES = {"cpu": ({"abs": 1e-5, "rel": 1e-5}, {"atol": 1e-5, "rtol": 1e-4}),
              "cuda": ({"abs": 1e-3, "rel": 1e-3}, {"atol": 5e-3, "rtol": 1e-2})}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launch(device: str, config: Path, processes: int, results: Path, *more: str, accelerate: bool = False) -> Path:
    """Run scripts/train.py in `processes` processes, under torchrun or accelerate launch; the run's folder."""
    launcher = [sys.executable]
    if processes > 1 and accelerate:
        # --multi_gpu is accelerate's word for several processes; without GPUs they are processes on the CPU.
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launcher += [f"--main_process_port={free_port()}"]  # accelerate 1.1 does not look for one itself
    elif processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        *launcher,
        str(ROOT / "scripts" / "train.py"),
        "--config",
        str(config),
        "--run.results",
        str(results),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(device))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (run,) = results.iterdir()
    return run


def environment(device: str, visible: str | None = None) -> dict[str, str]:
    """visible: the GPUs that the processes see, all if not given; none of them on CPUs."""
    visible = "" if device == "cpu" else visible
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return os.environ | ours | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def assert_same_weights(a: Path, b: Path, name: str, device: str):
    """Of two checkpoints; not a bit may differ on CPUs."""
    one, two = (load_pretrained(checkpoint / name).state_dict() for checkpoint in (a, b))
    for key in one:
        exact = {"atol": 0, "rtol": 0} if device == "cpu" else TOLERANCES[device][1]
        torch.testing.assert_close(one[key], two[key], **exact, msg=key)


@pytest.fixture
def config_file(experiment, tmp_path):
    config = experiment(
        optim={"steps": 6, "micro_batch_size": 2}, run={"log_every": 1, "checkpoint_every": 3, "tf32": False}
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    return path


WAYS = {
    "a DiT that grows": ({"name": "DiT-XS/4", "depth": 3, "early_head": 1}, {"grow": [[0, 1], [0.5, 3]]}),
    "a looped core": (
        {"implicit_depth": 2, "injection": "lanes", "loop_embedding": 2, "early_head": 2},
        {"grow": [[0, 2], [0.5, 4]], "supervise": "all", "start": ["other"], "consistency": 0.1,
         "consistency_from": 0.2, "jacobian": 0.1},
    ),
    "an adjoint that fails": (
        {"injection": "decay"}, {"variant": "implicit", "adjoint_iterations": 2, "start": ["noise"], "jacobian": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_new_forms_like_one(experiment, tmp_path, device, way):
    """Blocks without a gradient yet, several losses and second passes: DDP waits for nothing and averages all."""
    model, sjfb = WAYS[way]
    settings = {"optim": {"steps": 4, "micro_batch_size": 2}, "run": {"log_every": 1, "tf32": False}}
    config = experiment(model=model, sjfb=sjfb, **settings)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    one, two = (launch(device, path, count, tmp_path / str(count)) for count in (1, 2))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "objective", "grad_norm"):
            assert a[name] == pytest.approx(b[name], **TOLERANCES[device][0])
        for name in ("adjoint_failures", "adjoint_products"):  # of all processes together
            assert a.get(name) == b.get(name)
        # In the first step, the gradient is 0, which is solved at once.
        assert "adjoint" not in way or a["step"] == 1 or a["adjoint_failures"] == config.optim.batch_size
    weights = [load_pretrained(run / "checkpoints" / "latest" / "model").state_dict() for run in (one, two)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], **TOLERANCES[device][1], msg=key)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_two_processes_train_a_flow_with_muon_and_snapshots_like_one(experiment, tmp_path, device):
    """Muon rounds its steps to bfloat16, so they differ by 1 in 250 where gradients differ in their last bits."""
    averages = {"ema_extra": [0.9], "ema_profiles": [0.1], "ema_snapshot_every": 2}
    optim = {"steps": 4, "micro_batch_size": 2, "optimizer": "muon", "muon_lr": 1e-3, **averages}
    path, flow = tmp_path / "config.yaml", {"process": "flow", "draw": "logit-normal"}
    config = experiment(optim=optim, diffusion=flow, run={"log_every": 1, "tf32": False})
    path.write_text(yaml.safe_dump(asdict(config)))
    one, two = (launch(device, path, count, tmp_path / str(count)) for count in (1, 2))
    names = {str(file.relative_to(one)) for file in one.rglob("*.safetensors")}
    assert names == {str(file.relative_to(two)) for file in two.rglob("*.safetensors")} and len(names) == 4 + 2
    for name in sorted(names):
        ours, theirs = (load_file(run / name) for run in (one, two))
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-2, msg=f"{name} {key}")


def test_two_processes_start_from_weights_like_one(experiment, tmp_path, device, tiny_run, held_out_store):
    """Both have them, in the network and in the average, of which each validates a part."""
    config = experiment(
        model={"name": "FPDM-XS/2", "implicit_depth": 2},
        optim={"steps": 2, "micro_batch_size": 2},
        run={"validate_every": 1, "tf32": False},
        validation={"latents": str(held_out_store)},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    one, two = (launch(device, path, count, tmp_path / str(count), "--init", str(tiny_run)) for count in (1, 2))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "val_loss"):
            assert a[name] == pytest.approx(b[name], **TOLERANCES[device][0])
    assert "implicit.blocks.1      <- new, the identity" in (two / "log.txt").read_text()


def test_two_processes_follow_the_path_of_one(config_file, tmp_path, device):
    losses, weights_of = TOLERANCES[device]
    one, two = (launch(device, config_file, count, tmp_path / str(count)) for count in (1, 2))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "mse", "vb", "grad_norm"):
            assert a[name] == pytest.approx(b[name], **losses)
        for name in ("step", "lr", "n", "m"):
            assert a[name] == b[name]
    for name in ("model", "ema"):
        weights = [load_pretrained(run / "checkpoints" / "latest" / name).state_dict() for run in (one, two)]
        for key in weights[0]:
            torch.testing.assert_close(weights[0][key], weights[1][key], **weights_of, msg=key)

    # and a run of two goes on with two, to where it was
    checkpoint = (two / "checkpoints" / "latest").resolve()
    shutil.copytree(checkpoint, tmp_path / "before")
    (two / "checkpoints" / "latest").unlink()
    (two / "checkpoints" / "latest").symlink_to("0000003")
    launch(device, config_file, 2, tmp_path / "2", "--resume", str(two))
    assert_same_weights(tmp_path / "before", checkpoint, "model", device)


LAYERS = """
import sys, torch, torch._dynamo
from functools import partialmethod
from torch.nn.parallel import DistributedDataParallel
from fpdm.models import build_model, compile_layers

torch.distributed.init_process_group("gloo" if sys.argv[1] == "cpu" else "nccl")
torch.set_default_device(sys.argv[1])
model = build_model("FPDM-XS/2", input_size=8, in_channels=3, num_classes=4, hidden_size=256)
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # it is the cutting that counts
compile_layers(model)
parallel = DistributedDataParallel(model, bucket_cap_mb=1)  # less than a layer has
counters = torch._dynamo.utils.counters

def step(batch, **forward):
    index = torch.arange(batch) % 4
    with torch.autocast(sys.argv[1], torch.bfloat16):
        output = parallel(torch.zeros(batch, 3, 8, 8), index, index, drop_labels=index == 1, **forward)
    output.prediction.sum().backward()
    print(counters["stats"]["unique_graphs"], counters["aot_autograd"]["total"])

parallel(torch.zeros(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1]), iterations=3)
print(counters["stats"]["unique_graphs"], counters["aot_autograd"]["total"])
step(6, iterations=2, iterations_no_grad=1)
step(5, iterations=3, iterations_no_grad=2)  # an odd last batch
step(3, iterations=1, iterations_no_grad=1, recompute=True)
"""


def test_layers_stay_whole_under_ddp(device):
    """A block and an update: two graphs, and as many pieces given to the compiler; under autocast, with and without
    gradient, some more; and none for odd batches and other iterations. Gradient checkpointing adds one of each layer
    with torch 2.7, none with newer versions."""
    command = [sys.executable, "-c", LAYERS, device]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(device) | alone)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = [line.split() for line in done.stdout.splitlines()]
    assert first == ["2", "2"]
    assert len(others) == 3 and all(graphs == pieces for graphs, pieces in others)
    assert others[0] == others[1] and int(others[2][0]) - int(others[1][0]) in (0, 2)


def on_two_processes(program: str, folder: Path, device: str, *arguments: str) -> str:
    """What a program prints under torchrun."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(folder / "program.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(device))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


BUCKETS = """
import sys, torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from fpdm.models import build_model
from fpdm.training.gradients import settle_gradients

name = sys.argv[2]
kwargs = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
accelerator = Accelerator(cpu=sys.argv[1] == "cpu", kwargs_handlers=[kwargs])
network = build_model(name, input_size=8, in_channels=3, num_classes=4, hidden_size=32).to(accelerator.device)
model = accelerator.prepare(network)
settle_gradients(accelerator, model, [3, 8, 8], network)
assert not any(parameter.grad.any() for parameter in network.parameters() if parameter.requires_grad)
index = torch.zeros(2, dtype=torch.long, device=accelerator.device)
with accelerator.no_sync(model):
    x = torch.ones(2, 3, 8, 8, device=accelerator.device)
    extra = {"iterations": 2} if name.startswith("FPDM") else {}
    model(x, index, index, drop_labels=index.bool(), **extra).prediction.square().sum().backward()
places = [parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters() if parameter.requires_grad]
assert len(set(places)) < len(places) / 4, (len(set(places)), len(places))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["FPDM-XS/2", "DiT-XS/2"])
def test_gradients_accumulate_in_ddps_buckets(tmp_path, device, name):
    """From the first part of the first batch on; without `settle_gradients` each has a storage of its own by then."""
    on_two_processes(BUCKETS, tmp_path, device, device, name)


LEFT = """
import gc, runpy, sys
import torch
from torch.nn.parallel import DistributedDataParallel

leave = torch.distributed.destroy_process_group

def checked():
    assert not any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
    leave()
    print("left the group", flush=True)

torch.distributed.destroy_process_group = checked
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_group_is_left_after_ddp_is_gone(config_file, tmp_path, device):
    """Else the end of DDP's reducer would be the group's, under Python's lock, for which a thread of gloo may wait."""
    train = [str(ROOT / "scripts" / "train.py"), "--config", str(config_file), "--run.results", str(tmp_path / "runs")]
    assert on_two_processes(LEFT, tmp_path, device, *train).count("left the group") == 2


def test_compiled_on_two_processes_goes_on_eagerly_on_one(config_file, tmp_path, device):
    """Names of weights are the same, and so is the path, within the rounding of other kernels."""
    eager = launch(device, config_file, 1, tmp_path / "eager")
    compiled = launch(device, config_file, 2, tmp_path / "compiled", "--run.compile", "--optim.steps", "4")
    assert launch(device, config_file, 1, tmp_path / "compiled", "--resume", str(compiled)) == compiled
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (eager, compiled)]
    assert [record["step"] for record in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [a["loss"] for a in logs[0]] == pytest.approx(
        [b["loss"] for b in logs[1]], rel=1e-3 if device == "cpu" else 1e-2
    )
    weights = [load_pretrained(run / "checkpoints" / "latest" / "model").state_dict() for run in (eager, compiled)]
    assert weights[0].keys() == weights[1].keys()


def test_accelerate_launch_and_several_nodes_do_the_same(config_file, tmp_path, device):
    """Two processes of one node by accelerate, two nodes of one process by torchrun: one path."""
    launched = launch(device, config_file, 2, tmp_path / "accelerate", accelerate=True)
    nodes = launch_nodes(device, config_file, tmp_path / "nodes")
    assert_same_weights(launched / "checkpoints" / "latest", nodes / "checkpoints" / "latest", "ema", device)


def launch_nodes(device: str, config: Path, results: Path) -> Path:
    """Two `nodes` that meet at a rendezvous, as two machines would; on GPUs each sees one of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
    command += [f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=test", str(ROOT / "scripts" / "train.py")]
    command += ["--config", str(config), "--run.results", str(results)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for node in [subprocess.Popen(command, **pipes, env=environment(device, visible)) for visible in ("0", "1")]:
        said, _ = node.communicate(timeout=300)
        assert node.returncode == 0, said[-4000:]
    (run,) = results.iterdir()
    return run


def test_batch_that_does_not_divide(config_file, tmp_path, device):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "scripts" / "train.py"), "--config", str(config_file), "--optim.batch_size", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(device))
    assert done.returncode != 0
    assert "error: optim.batch_size=9: not a multiple of the 2 processes" in done.stderr


def test_mistake_that_one_process_finds_ends_all_of_them(config_file, tmp_path, device):
    """The main process alone looks for the run to resume; the others must not wait for it, nor fail on their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "scripts" / "train.py"), "--config", str(config_file), "--resume", "latest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(device))
    assert done.returncode != 0
    assert done.stderr.count("error: --resume latest: no run named") == 2  # a line from each
    if device == "cpu":  # NCCL has its own warnings
        assert "[rank1]" not in done.stderr and "Connection closed" not in done.stderr
