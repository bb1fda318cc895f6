"""Encode a folder of images into many stores, killed on the way each time, and then finish all but the last.

Imports everything once, runs no tensor operation, and forks a child for every attempt: a child
is killed at some line of the writing code, counted by a tracer, or by the clock.
    kill_often.py IMAGES VAE OUT STORES SEED
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL  # noqa: F401, here so that no child has to

from fpdm.config import EncodeConfig
from fpdm.data import shards, writing
from fpdm.data.codec import open_codec
from fpdm.data.encode import encode
from fpdm.data.images import open_images

TRACED = {shards.__file__, writing.__file__}
LINES = 900  # about as many as a whole run executes in these files, and of them in
FINISHING = {"close", "_summarise", "finish", "tidy"}  # the ends of shards and of the store
FINISHING_LINES = 160


def die_at_line(line: int, functions: set[str] | None):
    """A tracer that ends this process at the line-th line executed in the writing code, or in these functions of it."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in TRACED or (functions and frame.f_code.co_name not in functions):
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def run(images: str, vae: str, outs: list[Path], tracer=None) -> int:
    """A child that encodes; its process id."""
    if child := os.fork():
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars
    config = EncodeConfig(resolution=16, batch_size=3, shard=5, skip_broken=True)
    source, codec = open_images(images), open_codec(vae)
    sys.settrace(tracer)
    for out in outs:
        encode(source, codec, out, config, torch.device("cpu"))
    os._exit(0)


def kill_once(images: str, vae: str, out: Path, draw: random.Random, way: str) -> bool:
    """Start a run of the store `out` and kill it; whether it was in time."""
    tracers = {
        "early": die_at_line(draw.randrange(250, LINES // 2), None),
        "anywhere": die_at_line(draw.randrange(LINES), None),
        "finishing": die_at_line(draw.randrange(FINISHING_LINES), FINISHING),
    }
    child = run(images, vae, [out], tracers.get(way))
    if way == "clock":
        time.sleep(draw.uniform(0.1, 0.4))
        os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for partial in out.glob("shard-*.partial"):  # a record may have been on its way to the disk
        if draw.random() < 0.5:
            os.truncate(partial, max(0, partial.stat().st_size - draw.randrange(3000)))
    return killed


def main() -> None:
    images, vae, out, stores, seed = sys.argv[1:]
    draw, folders = random.Random(int(seed)), [Path(out) / str(i) for i in range(int(stores))]
    killed = 0
    for folder in folders:
        ways = draw.choices(("anywhere", "finishing", "clock"), k=draw.choice((1, 1, 2)))
        for way in ways if folder != folders[-1] else ["early"]:
            killed += kill_once(images, vae, folder, draw, way)
    assert os.waitpid(run(images, vae, folders[:-1]), 0)[1] == 0
    sys.stdout.write(f"{killed} kills\n")


if __name__ == "__main__":
    main()
