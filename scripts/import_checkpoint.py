"""Import a published DiT or FPDM checkpoint (.pt) as a folder that scripts/sample.py can load."""

from fpdm.commands.import_checkpoint import run

if __name__ == "__main__":
    run()
