"""Sample images from a checkpoint: `python scripts/sample.py --help`."""

from fpdm.commands.sample import run

if __name__ == "__main__":
    run()
