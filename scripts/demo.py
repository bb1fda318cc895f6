"""A page in the browser that draws at the turn of a dial: `python scripts/demo.py --help`."""

from fpdm.commands.demo import run

if __name__ == "__main__":
    run()
