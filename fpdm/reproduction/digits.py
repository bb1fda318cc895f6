"""Preparation of scikit-learn's digits: a VAE, the latents, and the features for scoring."""

from pathlib import Path

from fpdm.chain import run_script
from fpdm.reproduction.experiments import Data, Experiment, Reference, reference_of

TRAINING_DIGITS, HELD_OUT_DIGITS = "digits@training", "digits@held-out"
RESOLUTION = 32
VAE_STEPS = 800


def prepare(out: Path, vae_steps: int = VAE_STEPS) -> None:
    """Create the VAE in out/vae and the latents in out/latents, unless they exist; both of the training digits."""
    vae, latents = out / "vae", out / "latents"
    if not (vae / "config.json").exists():
        run_script("train_vae.py", "--images", TRAINING_DIGITS, "--resolution", RESOLUTION, "--widths", "[16,32,32]",
                   "--steps", vae_steps, "--batch-size", 16, "--lr", "3e-3", "--kl-weight", "1e-3",
                   "--out", vae)  # fmt: skip
    if not (latents / "manifest.json").exists():
        run_script("encode_latents.py", "--images", TRAINING_DIGITS, "--resolution", RESOLUTION, "--vae", vae,
                   "--mirror", "false", "--out", latents)  # fmt: skip


def hold_out(out: Path) -> None:
    """Create the latents of the held-out digits in out/held-out, unless they exist, with the VAE in out/vae."""
    if not (out / "held-out" / "manifest.json").exists():
        run_script("encode_latents.py", "--images", HELD_OUT_DIGITS, "--resolution", RESOLUTION, "--vae", out / "vae",
                   "--mirror", "false", "--out", out / "held-out")  # fmt: skip


def reference(cache: Path) -> Reference:
    """The training digits, the classifier trained on them, and the held-out digits."""
    return reference_of(TRAINING_DIGITS, RESOLUTION, cache, HELD_OUT_DIGITS)


def _sjfb(variant: str, no_grad: int, grad: int, steps_as: str | None = None) -> Experiment:
    words = ("--sjfb.variant", variant, "--sjfb.no_grad", no_grad, "--sjfb.grad", grad)
    return Experiment("fpdm", words, steps_as=steps_as)


def _explicit(blocks: int) -> Experiment:
    return Experiment("fpdm", ("--model.pre_depth", blocks, "--model.post_depth", blocks))


# The FPDM of configs/digits has N = 2, M = 3: in a few minutes of training, few updates are best (Tab. 4).
EXPERIMENTS = {
    "fpdm": Experiment("fpdm"),
    "dit": Experiment("dit"),
    "fpdm-equal-flops": Experiment("fpdm", flops_of="dit"),
    "dit-3-blocks": Experiment("dit", ("--model.depth", 3)),
    "dit-narrow": Experiment("dit", ("--model.hidden_size", 68)),
    "fpdm-equal-steps": Experiment("fpdm", steps_as="dit"),
    "dit-3-blocks-equal-steps": Experiment("dit", ("--model.depth", 3), steps_as="dit"),
    "dit-narrow-equal-steps": Experiment("dit", ("--model.hidden_size", 68), steps_as="dit"),
    **{f"stochastic-{k}": _sjfb("stochastic", k, k) for k in (3, 6, 12, 24)},
    **{f"{variant}-{k}": _sjfb(variant, k, k) for variant in ("jfb", "multi-step") for k in (6, 12)},
    **{f"jfb-{k}-equal-steps": _sjfb("jfb", k, k, steps_as=f"stochastic-{k}") for k in (6, 12)},
    **{f"explicit-{k}": _explicit(k) for k in (0, 2, 4)},
    "p2": Experiment("fpdm", ("--diffusion.weighting", "p2"), steps_as="fpdm"),  # same cost per step
}


def digits(vae_steps: int = VAE_STEPS) -> Data:
    """The data set. vae_steps: training steps of its VAE."""
    return Data("digits", EXPERIMENTS, lambda out: prepare(out, vae_steps), reference)
