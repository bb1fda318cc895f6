"""Attributes of images: numbers with names, on which a network can be conditioned instead of a class.

N images, A attributes.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
KEPT = 10_000  # vectors of the training data that a checkpoint holds, from which sampling draws


class Attributes(NamedTuple):
    """names: of the attributes. vectors: (N, A) float32, one for each image."""

    names: list[str]
    vectors: np.ndarray

    def subset(self, indices: list[int]) -> "Attributes":
        """Those of the images `indices`, in that order."""
        return Attributes(self.names, self.vectors[indices])

    def constant(self) -> list[str]:
        """The names of the attributes that are the same in all images."""
        return [name for name, same in zip(self.names, self._same(), strict=True) if same]

    def _same(self) -> np.ndarray:
        return self.vectors.min(0) == self.vectors.max(0)

    def facts(self) -> dict:
        """What a store's manifest says of them. The deviation of a constant attribute counts as 1, so that standardised
        ones are finite."""
        values = self.vectors.astype(np.float64)
        std = np.where(self._same(), 1.0, values.std(0))
        digest = hashlib.blake2b("\0".join(self.names).encode(), digest_size=16)
        digest.update(self.vectors.astype("<f4").tobytes())
        return {
            "attributes_hash": digest.hexdigest(),
            "attribute_names": self.names,
            "attribute_mean": values.mean(0).tolist(),
            "attribute_std": std.tolist(),
        }


def is_number(value: float) -> bool:
    """Whether it is finite in float32."""
    return abs(value) <= LARGEST


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0 to count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def of_vectors(where: str, pairs: Iterable[tuple[str, object]]) -> Attributes:
    """The attributes "0", "1", ... in EDM's [name, [number, ...]] pairs; ValueError naming what is no such pair."""
    found, width = [], None
    for name, vector in pairs:
        width = width or (len(vector) if isinstance(vector, list) else 0)
        plain = isinstance(vector, list) and all(type(value) in (int, float) and is_number(value) for value in vector)
        if not plain or len(vector) != width or not vector:
            raise ValueError(
                f"{where}: the label of {name} is {vector}, the first one has {width} numbers; give each image as many "
                "finite numbers"
            )
        found.append(vector)
    return Attributes([str(number) for number in range(width)], np.array(found, np.float32))
