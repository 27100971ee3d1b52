"""A seeded order that depends on content alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

from llamafarm.api import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def ranker(seed: int) -> Callable[[bytes], int]:
    """A function from content to its rank, a 64-bit number: another seed, another order."""
    key = blake2b(str(seed).encode()).digest()
    return lambda content: int.from_bytes(blake2b(content, digest_size=16, key=key).digest()[:8])


def ranks(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The rank of each digest: another seed, another order; different digests, different ranks.

    Digests are evenly spread already, so that mixing them with the seed by the finalizer of splitmix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014), which maps no two numbers to one, is enough.
    """
    import numpy as np

    key = int.from_bytes(blake2b(str(seed).encode()).digest()[:8])
    mixed = digests ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def numbers(rows: Iterable[Row]) -> NDArray[np.uint64]:
    """The digests of rows, as the host hands them to splitters that need nothing else."""
    import numpy as np

    return np.fromiter((int.from_bytes(row.digest[:8]) for row in rows), np.uint64)
