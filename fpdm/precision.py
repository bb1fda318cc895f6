"""Precisions of a network's or a codec's arithmetic, by their names in the settings."""

import torch

# The type of matrix products under autocast, or of a VAE's weights; None for float32 throughout.
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
