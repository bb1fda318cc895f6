"""Making a store: batches, processes, kills and mistakes leave the same records or a clear error."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from fpdm.config import EncodeConfig
from fpdm.data import writing
from fpdm.data.codec import LatentMoments, open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images
from fpdm.data.latents import LatentStore, Manifest
from fpdm.data.shards import StoreFolder
from fpdm.data.writing import Batch, pack, write_store

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = {"resolution": 16, "batch_size": 3, "shard": 5, "skip_broken": True}


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def broken_folder(image_folder, tmp_path_factory):
    """24 images, one of them broken."""
    folder = tmp_path_factory.mktemp("broken") / "set"
    shutil.copytree(image_folder, folder)
    (folder / "bee" / "4.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(broken_folder, tiny_vae, tmp_path_factory):
    """The store of `broken_folder` that one process wrote without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    encode(open_images(broken_folder), open_codec(str(tiny_vae)), folder, EncodeConfig(**SMALL), CPU)
    return folder


def draft(images=10, shard=4, **changes) -> Manifest:
    """Of latents with 1 x 2 x 2 values."""
    classes = [str(i) for i in range(images)]
    base = Manifest("vae", "0", 1.0, 2, "centre", [1, 2, 2], 1, 1, classes, images=images, images_hash="0", shard=shard)
    return replace(base, **changes)


def numbered(ranges):
    """Batches whose latents and labels are the numbers of the images."""
    for images in ranges:
        numbers = torch.tensor(images)
        yield Batch(numbers, numbers, [LatentMoments(numbers[:, None, None, None].expand(-1, 1, 2, 2).float(), None)])


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_shards_split_the_list(tmp_path, batch):
    manifest = write_store(tmp_path / "s", draft(), numbered, batch, "test")
    assert manifest.shards == [4, 4, 2] and manifest.count == 10
    assert sorted(files(tmp_path / "s")) == ["manifest.json", *(f"shard-{i:05d}.bin" for i in range(3))]
    batch = LatentStore(tmp_path / "s").read(np.arange(10))
    assert batch.labels.tolist() == list(range(10)) == batch.moments().mean[:, 0, 1, 1].tolist()


def test_skipped_images_shorten_their_shard(tmp_path):
    kept = [0, 1, 8, 11]  # of 12 in shards of 4: the second is left empty

    def batches(ranges):
        for images in ranges:
            if left := [image for image in images if image in kept]:
                yield from numbered([left])

    manifest = write_store(tmp_path / "s", draft(12), batches, 2, "test")
    assert (manifest.shards, manifest.count, manifest.skipped) == ([2, 0, 2], 4, 8)
    batch = LatentStore(tmp_path / "s").read(np.array([3, 1, 2, 0]))
    assert batch.labels.tolist() == [11, 1, 8, 0]


def test_broken_images_are_skipped_and_counted(whole):
    manifest = LatentStore(whole).manifest
    assert (manifest.count, manifest.skipped, manifest.shards) == (23, 1, [5, 5, 4, 5, 4])


def test_content_depends_on_neither_batch_nor_workers_nor_place(broken_folder, tiny_vae, whole, tmp_path):
    shutil.copytree(broken_folder, tmp_path / "moved")
    codec = open_codec(str(tiny_vae))
    for i, change in enumerate(({"batch_size": 7}, {"batch_size": 64}, {"workers": 2})):
        encode(open_images(tmp_path / "moved"), codec, tmp_path / str(i), EncodeConfig(**SMALL | change), CPU)
        assert files(tmp_path / str(i)) == files(whole)


@pytest.mark.parametrize("ranks", [2, 7])
def test_several_processes_write_what_one_does(broken_folder, tiny_vae, whole, tmp_path, ranks):
    images, codec, barrier = open_images(broken_folder), open_codec(str(tiny_vae)), threading.Barrier(ranks, timeout=60)
    arrived = []

    def arrive():
        arrived.append(True)
        return lambda: len(arrived) == ranks

    def share(rank):
        return encode(images, codec, tmp_path / "s", EncodeConfig(**SMALL), CPU, rank, ranks, barrier.wait, arrive)

    with ThreadPoolExecutor(ranks) as pool:  # threads stand for processes; 7 ranks have 5 shards to share
        manifests = list(pool.map(share, range(ranks)))
    assert files(tmp_path / "s") == files(whole)
    assert manifests[0].count == 23 and not any(manifests[1:])


def run(*command) -> subprocess.CompletedProcess:
    # As many threads as here: with another number the VAE's arithmetic rounds differently.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | threads
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


SHARE = """
import os, signal, sys, time
from datetime import timedelta
import torch
from fpdm import cli
from fpdm.data.codec import LatentMoments
from fpdm.data.latents import Manifest
from fpdm.data.writing import Batch, write_store
from fpdm.devices import arrive, process_state

folder, way = sys.argv[1:]
state = process_state(timedelta(seconds=4))
classes = [str(i) for i in range(10)]
draft = Manifest("vae", "0", 1.0, 2, "centre", [1, 2, 2], 1, 1, classes, images=10, images_hash="0", shard=4)

def batches(ranges):
    for images in ranges:
        if state.process_index == 1:
            {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "hung": lambda: time.sleep(600),
             "slow": lambda: time.sleep(1)}[way]()
        numbers = torch.tensor(images)
        yield Batch(numbers, numbers, [LatentMoments(numbers[:, None, None, None].expand(-1, 1, 2, 2).float(), None)])

cli.run(lambda: write_store(folder, draft, batches, 4, "test", state.process_index, 2, state.wait_for_everyone, arrive))
"""


@pytest.mark.parametrize("way", ["killed", "hung", "slow"])
def test_the_main_process_does_not_wait_for_one_that_is_lost(tmp_path, way):
    """Without torchrun, which would end the other; each is in its share when one is lost."""
    (tmp_path / "share.py").write_text(SHARE)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                                "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # fmt: skip
    command = [sys.executable, str(tmp_path / "share.py"), str(tmp_path / "s"), way]
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]  # fmt: skip
    try:
        _, said = ranks[0].communicate(timeout=60)
    finally:
        if way != "slow":
            ranks[1].kill()
        ranks[1].communicate()
    if way == "slow":
        assert [rank.returncode for rank in ranks] == [0, 0], said
        write_store(tmp_path / "whole", draft(), numbered, 4, "test")
        assert files(tmp_path / "s") == files(tmp_path / "whole")
    else:
        assert ranks[0].returncode == 3, said
        assert said.count("\nerror: another process of this command has ended or does not answer") == 1
        assert "Traceback" not in said and "manifest.json" not in files(tmp_path / "s")


def test_a_store_that_another_program_finished_while_this_one_waited(tmp_path, monkeypatch):
    """It is whole, and nothing is written."""

    @contextmanager
    def only_writer(folder):
        monkeypatch.undo()
        write_store(folder, draft(), numbered, 4, "test")
        yield

    folder = stopped(tmp_path / "s")
    monkeypatch.setattr(writing, "only_writer", only_writer)
    assert write_store(folder, draft(), None, 4, "test").count == 10
    write_store(tmp_path / "whole", draft(), numbered, 4, "test")
    assert files(folder) == files(tmp_path / "whole")


def test_shards_that_are_not_there_when_all_have_written_theirs(tmp_path, monkeypatch):
    """As on a folder that the processes do not share."""
    monkeypatch.setattr("fpdm.data.shards.SHARED_SECONDS", 1)
    with pytest.raises(ValueError, match=r"shard-00001\.bin is not there, though every process has written its share"):
        write_store(tmp_path / "s", draft(), numbered, 4, "test", rank=0, ranks=2)


def test_killed_runs_resume_to_the_same_bytes(broken_folder, tiny_vae, whole, tmp_path):
    stores = 16
    said = run(Path(__file__).with_name("kill_often.py"), broken_folder, tiny_vae, tmp_path, stores, 0).stdout
    assert int(said.split()[0]) >= stores / 2
    for i in range(stores - 1):
        assert files(tmp_path / str(i)) == files(whole), f"store {i}"
    last = tmp_path / str(stores - 1)
    assert "manifest.json" not in files(last) and "encoding.json" in files(last)
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "scripts/encode_latents.py",
               "--images", broken_folder, "--vae", tiny_vae, "--out", last, "--resolution", 16, "--batch-size", 3,
               "--shard", 5, "--skip-broken", "true")  # fmt: skip
    assert files(last) == files(whole)
    assert "encode: 100%" in done.stderr and "| 24/24 [" in done.stderr
    assert done.stdout.count("23 latents (4, 8, 8)") == 1


def stopped(folder, images=10, after=6, shard=4):
    """A store whose writing stopped after so many images."""

    def batches(ranges):
        for batch in numbered(ranges):
            if batch.indices[0] >= after:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        write_store(folder, draft(images, shard), batches, 1, "test")
    return folder


def test_resumed_run_does_only_what_is_missing(tmp_path, monkeypatch):
    folder, seen, bars = stopped(tmp_path / "s"), [], []

    def bar(**kwargs):
        bars.append(kwargs)
        return tqdm(**kwargs)

    def batches(ranges):
        seen.extend(image for images in ranges for image in images)
        return numbered(ranges)

    monkeypatch.setattr(writing, "tqdm", bar)
    write_store(folder, draft(), batches, 3, "test")
    assert seen == [6, 7, 8, 9]
    assert (bars[0]["initial"], bars[0]["total"]) == (6, 10)  # what was there is done, but not in the rate
    assert write_store(folder, draft(), None, 3, "test").count == 10  # finished: nothing is done
    write_store(tmp_path / "whole", draft(), numbered, 10, "test")
    assert files(folder) == files(tmp_path / "whole")


def test_implausible_records_are_cut_off(tmp_path):
    folder = stopped(tmp_path / "s")
    size = draft().record.itemsize
    for tail in (
        b"\0" * size,
        b"\xff" * (3 * size),
        bytes(size - 1),
        (folder / "shard-00001.bin.partial").read_bytes(),
    ):
        store = StoreFolder(folder, draft())
        with (folder / "shard-00001.bin.partial").open("ab") as file:
            file.write(tail)
        assert store.remaining(1) == range(6, 8)
        assert (folder / "shard-00001.bin.partial").stat().st_size == 2 * size


def test_lost_summaries_are_made_again(tmp_path):
    write_store(tmp_path / "whole", draft(), numbered, 4, "test")
    folder = stopped(tmp_path / "s", after=9)
    (folder / "shard-00000.json").unlink()
    summary = json.loads((folder / "shard-00001.json").read_text())
    for damage in ("", json.dumps(summary | {"sum": 1e308}), json.dumps(summary | {"squares": -1.0})):
        (folder / "shard-00001.json").write_text(damage)
        store = StoreFolder(folder, draft())
        assert store._load_summary(1) == summary
    write_store(folder, draft(), numbered, 4, "test")
    assert files(folder) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "1"}, r"vae \(weights\) was 0, is 1"),
        ({"resolution": 4}, "resolution was 2, is 4"),
        ({"flips": 2}, r"mirror \(views per image\) was 1, is 2"),
        ({"shard": 5}, "shard was 4, is 5"),
        ({"images_hash": "1"}, r"images \(hash\) was 0, is 1"),
        ({"crop": "none"}, "crop was centre, is none"),
        ({"precision": "bf16"}, "precision was None, is bf16"),
        ({"tf32": True}, "tf32 was False, is True"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, says):
    folder = stopped(tmp_path / "s")
    for _ in range(2):  # unfinished, then finished
        before = files(folder)
        with pytest.raises(ValueError, match=f"other settings: {says}; choose another --out or remove it"):
            write_store(folder, draft(**changes), numbered, 4, "test")
        assert files(folder) == before
        write_store(folder, draft(), numbered, 4, "test")


@pytest.mark.parametrize("name", ["encoding.json", "manifest.json"])
def test_a_store_from_before_tf32_was_a_setting_is_taken(tmp_path, name):
    """Begun or finished: its arithmetic was float32."""
    folder = stopped(tmp_path / "s")
    if name == "manifest.json":
        write_store(folder, draft(), numbered, 4, "test")
    facts = json.loads((folder / name).read_text())
    del facts["tf32"]
    (folder / name).write_text(json.dumps(facts))
    assert write_store(folder, draft(), numbered, 4, "test").tf32 is False
    with pytest.raises(ValueError, match="tf32 was False, is True"):
        write_store(folder, draft(tf32=True), numbered, 4, "test")


def test_shards_of_unknown_origin_are_refused(tmp_path):
    folder = stopped(tmp_path / "s")
    (folder / "encoding.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards but no encoding\.json"):
        write_store(folder, draft(), numbered, 4, "test")


def test_two_runs_at_once_are_noticed(tmp_path):
    store = StoreFolder(stopped(tmp_path / "s"), draft())
    store.remaining(1)
    with (tmp_path / "s" / "shard-00001.bin.partial").open("ab") as file:
        file.write(bytes(100))
    with pytest.raises(ValueError, match="another process is writing this store"):
        store.append(1, pack(draft(), next(numbered([[6]]))))


def test_full_disk_leaves_a_store_to_continue(tmp_path):
    wide = draft(shape=[1, 400, 400])  # 320 kB a record: what tests print must fit below the limit

    def batches(ranges, limit=None):
        for batch in numbered(ranges):
            if limit and batch.indices[0] == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            yield batch._replace(views=[LatentMoments(batch.views[0].mean[..., :1, :1].expand(-1, 1, 400, 400), None)])

    write_store(tmp_path / "whole", wide, batches, 4, "test")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"shard-00001\.bin\.partial: .*; what is written is kept: make room"):
            write_store(tmp_path / "s", wide, lambda ranges: batches(ranges, 1_000_000), 4, "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "s" / "shard-00001.bin.partial").stat().st_size == 1_000_000  # within the fourth record
    write_store(tmp_path / "s", wide, batches, 4, "test")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_latents_that_are_not_finite_are_refused(tmp_path):
    def batches(ranges):
        yield Batch(torch.tensor([0]), torch.tensor([0]), [LatentMoments(torch.full((1, 1, 2, 2), 1e6), None)])

    with pytest.raises(ValueError, match=r"vae \S+: returned latents that are not finite in float16"):
        write_store(tmp_path / "s", draft(), batches, 1, "test")


def test_store_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image could be encoded"):
        write_store(tmp_path / "s", draft(), lambda ranges: [], 4, "test")
