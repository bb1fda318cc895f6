"""Keyed randomness: every draw depends on its purpose, never on earlier draws."""

import hashlib


def key(*parts: int | str) -> int:
    """A 63-bit seed from its parts, as in `key("noise", seed, step)`; the same on all machines and processes."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
