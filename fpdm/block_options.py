"""The options of a network's blocks, with the choices by name. `fpdm/models/blocks.py` and `attention.py` implement
them."""

from dataclasses import dataclass

NORMS = ("layer", "rms")
MLPS = ("gelu", "swiglu")
POSITIONS = ("sincos", "learned", "rotary", "none")


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network are made of, the implicit layer's too. The defaults are DiT's, and the paper's.

    qk_norm: RMS norm of each head's queries and keys, with learned scales (Dehghani et al., 2023).
    norm: layer norm or RMS norm (Zhang & Sennrich, 2019) before attention, MLP and output, one of NORMS. Neither has
        weights of its own: the modulation scales.
    mlp: GELU, or SwiGLU (Shazeer, 2020) with as many parameters, one of MLPS.
    positions: one of POSITIONS. Sin-cos and learned ones (Dosovitskiy et al., 2021) are added to the tokens; rotary
        ones (Su et al., 2021) rotate queries and keys, half of each head's pairs by the row and half by the column.
    exclude_own_value: what attention returns to a token loses its component along the token's own value (Looped-DiT,
        arXiv:2609.40305).
    """

    qk_norm: bool = False
    norm: str = "layer"
    mlp: str = "gelu"
    positions: str = "sincos"
    exclude_own_value: bool = False

    def __post_init__(self):
        for name, choices in (("norm", NORMS), ("mlp", MLPS), ("positions", POSITIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")

    def check(self, hidden_size: int, num_heads: int, tokens: int, blocks: int) -> None:
        """ValueError for an option that a network of this size cannot have, or that would have no effect in it."""
        head = hidden_size // num_heads
        of_attention = {
            "qk_norm=true": self.qk_norm,
            "positions=rotary": self.positions == "rotary",
            "exclude_own_value=true": self.exclude_own_value,
        }
        for setting, given in (of_attention | {"mlp=swiglu": self.mlp == "swiglu"}).items():
            if given and blocks == 0:
                raise ValueError(f"{setting} in a network without blocks has no effect; leave it out")
            if given and tokens == 1 and setting in of_attention:
                raise ValueError(f"{setting} with a single token: there is nothing to attend to; leave it out")
        if self.positions == "rotary" and head % 4:
            raise ValueError(
                f"positions=rotary with hidden_size={hidden_size} and num_heads={num_heads}: a head is {head} wide, "
                "and must be a multiple of 4; choose another number of heads"
            )
        if self.exclude_own_value and head == 1:
            raise ValueError(
                f"exclude_own_value=true with hidden_size={hidden_size} and num_heads={num_heads}: in heads 1 wide, "
                "nothing is left without the own value; choose fewer heads"
            )


PAPER = BlockOptions()
