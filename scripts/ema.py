"""Make averaged weights of any length from a run's snapshots, after training."""

from fpdm.commands.ema import run

if __name__ == "__main__":
    run()
