"""Import latents that other programs extracted into a latent store for training."""

from fpdm.commands.import_latents import run

if __name__ == "__main__":
    run()
