"""Score images against a reference: Fréchet distances, Inception score, KID, precision and recall."""

from fpdm.commands.evaluate import run

if __name__ == "__main__":
    run()
