"""A program: trains, and kills the training with SIGKILL at random moments, resuming it until it ends.

All runs are forks of one process that has imported everything and computed nothing, so that
many moments take seconds. Prints, as JSON, what state each kill found the checkpoints in.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fpdm.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, RunConfig, SJFBConfig
from fpdm.training.loop import train

STEPS = 20
KILLS = 2  # of each training, before it may run to its end


def experiment(store: str, results: Path) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig("FPDM-XS/4", hidden_size=32, num_heads=2),
        sjfb=SJFBConfig(no_grad=2, grad=2),
        data=DataConfig(store),
        optim=OptimConfig(steps=STEPS, batch_size=8, lr=1e-3, warmup=2),
        run=RunConfig(name="run", results=str(results), log_every=1, checkpoint_every=1, keep_last=3, keep_every=10),
    )


def train_in_fork(store: str, results: Path, kill_at: int | None = None, later: float = 0.0) -> int:
    """Exit status of a training, negative for a signal.

    kill_at: kill it `later` seconds after its checkpoint of this step, or its start for step 0.
    """
    pid = os.fork()
    if pid == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            train(experiment(store, results), resume="auto")
        except BaseException:
            os._exit(1)
        os._exit(0)
    if kill_at is not None:
        while kill_at and not list(results.glob(f"*-run/checkpoints/{kill_at:07d}")):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        time.sleep(later)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def found(results: Path) -> str:
    """What a kill left: no run, no checkpoint, a checkpoint, or one besides another that was being written."""
    folder = max(results.glob("*-run/checkpoints"), default=None)
    names = [path.name for path in folder.iterdir()] if folder else []
    if any(name.startswith((".partial-", ".removed-", ".latest")) for name in names):
        return "amid writing"
    return "between" if "latest" in names else "before the first"


def main(store: str, root: Path, trainings: int) -> None:
    assert train_in_fork(store, root / "whole") == 0, "the uninterrupted training failed"
    rng, states = random.Random(0), []
    for i in range(trainings):
        results = root / str(i)
        for step in sorted(rng.sample(range(STEPS), KILLS)):
            status = train_in_fork(store, results, step, rng.uniform(0, 0.06 if step else 1.5))
            assert status in (0, -signal.SIGKILL), f"training {i} failed on its own, with status {status}"
            states.append("ended" if status == 0 else found(results))
        assert train_in_fork(store, results) == 0, f"training {i} could not be resumed after {states[-KILLS:]}"
    sys.stdout.write(json.dumps(states))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
