"""Import a published DiT or FPDM checkpoint (.pt) as a folder that scripts/sample.py draws from."""

from fpdm.commands.import_checkpoint import run

if __name__ == "__main__":
    run()
