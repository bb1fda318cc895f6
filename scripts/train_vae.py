"""Train a small AutoencoderKL on a folder, a zip or the digits, and measure its reconstruction."""

from fpdm.commands.train_vae import run

if __name__ == "__main__":
    run()
