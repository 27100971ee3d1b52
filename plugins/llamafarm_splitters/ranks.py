"""A seeded order that depends on content alone."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b


def ranker(seed: int) -> Callable[[bytes], int]:
    """A function from content to its rank, a 64-bit number: another seed, another order."""
    key = blake2b(str(seed).encode()).digest()
    return lambda content: int.from_bytes(blake2b(content, digest_size=16, key=key).digest()[:8])
