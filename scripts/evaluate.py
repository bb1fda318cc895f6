"""Score images against a reference; --help lists the options. The code is in fpdm/commands/evaluate.py."""

from fpdm.commands.evaluate import run

if __name__ == "__main__":
    run()
