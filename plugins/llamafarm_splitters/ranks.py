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
    """The rank of each digest (its halves as two numbers)."""
    import numpy as np

    rank, size, joined = ranker(seed), 16, digests.astype(">u8").tobytes()
    places = range(0, len(joined), size)
    return np.fromiter((rank(joined[place : place + size]) for place in places), np.uint64, len(digests))


def numbers(rows: Iterable[Row]) -> NDArray[np.uint64]:
    """The digests of rows, as the host hands them to splitters that need nothing else."""
    import numpy as np

    return np.frombuffer(b"".join(row.digest for row in rows), ">u8").reshape(-1, 2).astype(np.uint64)
