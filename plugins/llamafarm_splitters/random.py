"""`random`: a seeded choice of an exact number of rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from heapq import nsmallest
from itertools import count

from pydantic import Field

from llamafarm.api import DataSplitter, Row
from llamafarm.errors import DataError
from llamafarm_splitters.share import ShareConfig


class RandomConfig(ShareConfig):
    """Options of the `random` splitter."""

    eval_rows: int | None = Field(None, strict=True, ge=1, description="Held-out rows as a number.")
    seed: int = Field(42, strict=True, ge=0, description="Another seed, another choice.")

    @classmethod
    def share_fields(cls) -> tuple[str, ...]:
        """The fields of which one may be given."""
        return (*super().share_fields(), "eval_rows")


class Random(DataSplitter[RandomConfig]):
    """Holds out exactly the share of distinct rows, rounded half up, at least one row on each side.

    The same seed chooses the same rows, in whatever order they stand.
    """

    name = "random"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Rank rows by a keyed digest of their content and hold out the first ones.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        key = blake2b(str(self.config.seed).encode()).digest()
        digests = (blake2b(row.digest, digest_size=16, key=key).digest() for row in rows)
        ranks = array("Q", (int.from_bytes(digest[:8]) for digest in digests))
        sides = [False] * len(ranks)
        if len(ranks) > 1:
            for _, index in nsmallest(self._number(len(ranks)), zip(ranks, count(), strict=False)):
                sides[index] = True
        return sides

    def _number(self, rows: int) -> int:
        wanted = self.config.eval_rows
        if wanted is None:
            share = self.config.share
            half_up = (2 * rows * share.numerator + share.denominator) // (2 * share.denominator)
            return min(max(half_up, 1), rows - 1)
        if wanted >= rows:
            message = f"eval_rows is {wanted}, and there are {rows} distinct rows: none is left to train on"
            raise DataError.of("LF-DATA-025", message, hint=f"hold out at most {rows - 1}")
        return wanted
