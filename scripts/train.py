"""Train a DiT or an FPDM on a latent store: one process, or several under torchrun or accelerate launch."""

from fpdm.commands.train import run

if __name__ == "__main__":
    run()
