"""Precisions of a network's or a codec's arithmetic, by the names that settings give them."""

import torch

# What autocast lowers matrix products to, or a VAE's weights are cast to; None for float32 throughout.
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
