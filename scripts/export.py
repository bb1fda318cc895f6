"""Export a run's weights as a self-contained folder, for sampling elsewhere or for the Hub."""

from fpdm.commands.export import run

if __name__ == "__main__":
    run()
