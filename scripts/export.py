"""Export a run's weights as a folder that stands alone, for sampling anywhere or for the Hub."""

from fpdm.commands.export import run

if __name__ == "__main__":
    run()
