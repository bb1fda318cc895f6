"""Encode a folder, a zip or the digits into a latent store for training."""

from fpdm.commands.encode_latents import run

if __name__ == "__main__":
    run()
