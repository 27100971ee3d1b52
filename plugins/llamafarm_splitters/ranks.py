"""A seeded order that depends on content alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

from llamafarm.api import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZE = 16
_AT_ONCE = 1 << 12


def ranker(seed: int) -> Callable[[bytes], int]:
    """A function from content to its rank, a 64-bit number: another seed, another order."""
    key = _key(seed)
    return lambda content: int.from_bytes(blake2b(content, digest_size=_SIZE, key=key).digest()[:8])


def ranks(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The rank of each digest (its halves as two numbers): what `ranker` says of its bytes, at half the time."""
    import numpy as np

    keyed, found = blake2b(digest_size=_SIZE, key=_key(seed)).copy, bytearray()
    for start in range(0, len(digests), _AT_ONCE):
        contents = digests[start : start + _AT_ONCE].astype(">u8").view(f"V{_SIZE}").ravel().tolist()
        hashes = [keyed() for _ in contents]
        for hash_, content in zip(hashes, contents, strict=True):
            hash_.update(content)
        found += b"".join([hash_.digest() for hash_ in hashes])
    return np.frombuffer(found, ">u8")[::2].astype(np.uint64)


def _key(seed: int) -> bytes:
    return blake2b(str(seed).encode()).digest()


def numbers(rows: Iterable[Row]) -> NDArray[np.uint64]:
    """The digests of rows, as the host hands them to splitters that need nothing else."""
    import numpy as np

    return np.frombuffer(b"".join(row.digest for row in rows), ">u8").reshape(-1, 2).astype(np.uint64)
