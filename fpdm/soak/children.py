"""Children: forks of a process that has imported everything and computed nothing, so that a command costs a second.

A command is what a user types: its name and options. Its processes are one process group, as torchrun would start them.
"""

import gc
import importlib
import os
import resource
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from fpdm import cli
from fpdm.chain import ROOT

HUNG = -999  # the status of a process that had to be killed at its time limit
POLL = 0.002


class Ended(NamedTuple):
    """Exit statuses of a command's processes, negative for a signal; what they wrote; seconds until all had ended.

    mapped: most bytes of address space that the first of them had in use beyond what it had when it started, if that
    was limited.
    """

    statuses: list[int]
    said: str
    seconds: float
    mapped: int | None = None

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error: `."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    @property
    def well(self) -> bool:
        return all(status == 0 for status in self.statuses)

    @property
    def killed(self) -> bool:
        return any(status == -signal.SIGKILL for status in self.statuses)


class Children:
    """The running processes of one command."""

    def __init__(self, pids: list[int], said: Path):
        self.pids, self.said, self.started = pids, said, time.monotonic()
        self.statuses: dict[int, int] = {}

    def look(self) -> bool:
        """Whether all have ended."""
        for pid in self.pids:
            if pid not in self.statuses and (found := os.waitpid(pid, os.WNOHANG))[0]:
                self.statuses[pid] = os.waitstatus_to_exitcode(found[1])
        return len(self.statuses) == len(self.pids)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of them, and to the processes that they started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pids[0], number)

    def left(self) -> list[int]:
        """Processes that these have started and that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                facts = (path / "stat").read_text().rpartition(")")[2].split()
                if int(facts[2]) == self.pids[0] and facts[0] != "Z" and int(path.name) not in self.pids:
                    found.append(int(path.name))
        return found

    def wait(self, seconds: float) -> Ended:
        """Wait for all of them; those that still run after so many seconds are killed, with the status HUNG."""
        deadline = self.started + seconds
        try:
            while not self.look() and time.monotonic() < deadline:
                time.sleep(POLL)
        except BaseException:  # the campaign is stopped
            self.kill()
            raise
        took = time.monotonic() - self.started
        late = [pid for pid in self.pids if pid not in self.statuses]
        self.kill()  # also what a command has left behind
        for pid in late:
            os.waitpid(pid, 0)
            self.statuses[pid] = HUNG
        mapped = self.said.with_suffix(".mapped")
        return Ended(
            [self.statuses[pid] for pid in self.pids], self.said.read_text(errors="replace"), took,
            int(mapped.read_text()) if mapped.exists() else None,
        )  # fmt: skip


def start(
    work: Callable[[], None],
    said: Path,
    processes: int = 1,
    before: Callable[[int], None] | None = None,
    variables: dict[str, str] | None = None,
    memory: int | None = None,
) -> Children:
    """Fork processes that do the work; they write to the file `said`.

    before: called in each process with its rank, first. variables: of the environment. memory: bytes that a process may
    map beyond what it has mapped when it starts.
    """
    said.parent.mkdir(parents=True, exist_ok=True)
    said.write_bytes(b"")
    said.with_suffix(".mapped").unlink(missing_ok=True)
    port, pids = _free_port() if processes > 1 else 0, []
    for rank in range(processes):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, pids[0] if pids else 0)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _redirect(said)
                os.environ.update(variables or {})
                if processes > 1:
                    _join(rank, processes, port)
                torch.set_num_threads(1)
                begun = _mapped()
                if memory is not None:
                    resource.setrlimit(resource.RLIMIT_AS, (begun + memory, begun + memory))
                if before is not None:
                    before(rank)
                status = _status(work)
                if memory is not None:
                    said.with_suffix(".mapped").write_text(str(_mapped("VmPeak") - begun))
            finally:
                os._exit(status)
        pids.append(pid)
        with suppress(OSError):
            os.setpgid(pid, pids[0])  # here too: one of them may be killed before it has run at all
    return Children(pids, said)


def run(work: Callable[[], None], said: Path, limit: float = 120, **settings) -> Ended:
    """`start`, and wait for the end, at most `limit` seconds."""
    return start(work, said, **settings).wait(limit)


def command(words: list) -> Callable[[], None]:
    """What runs a command, as fpdm-<name> or scripts/<name>.py does: its name, then its options."""
    name, *options = map(str, words)

    def work() -> None:
        sys.argv = [name, *options]
        try:
            main = importlib.import_module(f"fpdm.commands.{name}").main
        except ModuleNotFoundError:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        else:
            cli.run(main)

    return work


def _status(work: Callable[[], None]) -> int:
    """Do the work; its exit status, as Python would end with it, with a traceback for what no one expects."""
    status = 0
    try:
        work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if status == 0:
        threading._shutdown()  # waits for threads, as Python does
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _redirect(said: Path) -> None:
    handle = os.open(said, os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, source in ((0, nothing), (1, handle), (2, handle)):
        os.dup2(source, stream)
    os.close(handle)
    os.close(nothing)
    gc.freeze()  # a collection would copy the libraries' memory


def _join(rank: int, processes: int, port: int) -> None:
    """The environment that torchrun gives a process."""
    os.environ.update({
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "soak",
    })  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _mapped(fact: str = "VmSize") -> int:
    """Bytes of address space in use, or (VmPeak) the most that were."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{fact}:"))
    return int(line.split()[1]) * 1024
