"""Keyed randomness: every draw is a function of what it is for, never of what was drawn before."""

import hashlib


def key(*parts: int | str) -> int:
    """A 63-bit seed from its parts, `key("noise", seed, step)`; the same on every machine and process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
