"""A Python whose libraries are already imported, for tests that start many processes.

A server imports the libraries once and forks a process for each request. The program `python` in its folder sends a
request with its arguments, environment, working directory and standard streams, passes signals on, and ends as that
process ends. To import torch, timm, diffusers and the rest takes seconds of each start; a fork takes milliseconds.

Our own package is not imported beforehand: tests also run changed copies of it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed.launcher.api", "torch.utils.tensorboard", "torchvision", "timm.layers",
    "accelerate", "diffusers", "diffusers.models.autoencoders.autoencoder_kl", "jsonargparse", "matplotlib.figure",
    "scipy.linalg", "scipy.optimize", "sklearn.neighbors", "torch_fidelity",
)  # fmt: skip
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LENGTH = struct.Struct("!I")
PATIENCE = 120  # seconds until the libraries are imported
ALONE = 5  # seconds after which the server looks whether the tests still run

CLIENT = """#!{real} -SE
import json, os, signal, socket, struct, sys
arguments = sys.argv[1:]
first = next((word for word in arguments if word != "-u"), "-")
if first.startswith("-") and first not in ("-m", "-c"):  # an option that Python has to have from the start
    os.execv({real!r}, [{real!r}, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
request = {{"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "ignored": ignored}}
content = json.dumps(request).encode()
for number in {signals!r}:
    if not (ignored and number == signal.SIGINT):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
socket.send_fds(server, [struct.pack("!I", len(content))], [0, 1, 2])
server.sendall(content)
answer = server.recv(4)
status = struct.unpack("!i", answer)[0] if len(answer) == 4 else 1
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class WarmPython:
    """The server, and `executable`, the program that stands for sys.executable while it runs."""

    def __init__(self, folder: Path):
        address = folder / "requests"
        self.executable = folder / "python"
        signals = [int(number) for number in PASSED_ON]
        self.executable.write_text(CLIENT.format(real=sys.executable, address=str(address), signals=signals))
        self.executable.chmod(self.executable.stat().st_mode | stat.S_IXUSR)
        # A process group of its own: what a test does to a group does not reach it.
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(address)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not address.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of {__file__} did not start")
            time.sleep(0.05)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


def serve(address: str) -> None:
    """Import the libraries, then fork for each request; returns only in the process of a request."""
    parent = os.getppid()
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:  # an extra that is not installed
            continue
    gc.freeze()  # a collection in a process would copy the libraries' memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a supervisor ended
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        os.rename(f"{address}.new", address)
        server.settimeout(ALONE)
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if os.getppid() != parent:  # the tests were killed
                    os._exit(0)
                continue
            if os.fork() == 0:
                break
            connection.close()
    connection.setblocking(True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    supervise(connection)


def supervise(connection: socket.socket) -> None:
    """Fork the process of a request and watch it: pass signals on, tell how it ended, and kill it if nobody listens."""
    header, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    (length,) = LENGTH.unpack(header)
    content = b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    process = os.fork()
    if process == 0:
        connection.close()
        return become(json.loads(content), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(process)
    while True:
        readable, _, _ = select.select([connection, ended], [], [])
        if ended in readable:
            connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
            os._exit(0)
        numbers = connection.recv(16)
        for number in numbers or [signal.SIGKILL]:
            os.kill(process, number)
        if not numbers:
            os._exit(0)


def become(request: dict, streams: list[int]) -> None:
    """Run what Python would run with these arguments, in this process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["ignored"] else signal.default_int_handler)
    sys.executable = str(Path(sys.argv[1]).with_name("python"))
    arguments = request["arguments"]
    if arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    end_without_teardown(partial(run_words, arguments))


def run_words(arguments: list[str]) -> None:
    """What Python would run with these arguments."""
    first, *rest = arguments
    extra = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:1] = [str(Path(first).resolve().parent) if first not in ("-m", "-c") else os.getcwd(), *extra]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


def end_without_teardown(run: Callable[[], None]) -> None:
    """Call `run` and end as Python would, without freeing the libraries, which would copy all of their memory."""
    status = 0
    try:
        run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # waits for threads, as Python does before it calls the exit functions
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
