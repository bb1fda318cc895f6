"""Train a classifier by whose features images are compared, on labelled images."""

from fpdm.commands.train_classifier import run

if __name__ == "__main__":
    run()
