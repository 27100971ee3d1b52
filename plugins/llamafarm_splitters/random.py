"""`random`: a seeded choice of an exact number of rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from heapq import nsmallest
from itertools import count

from pydantic import Field

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.ranks import ranker
from llamafarm_splitters.share import CountConfig


class RandomConfig(CountConfig):
    """Options of the `random` splitter."""

    seed: int = Field(42, strict=True, ge=0, description="Another seed, another choice.")


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
        rank = ranker(self.config.seed)
        ranks = array("Q", (rank(row.digest) for row in rows))
        sides = [False] * len(ranks)
        if len(ranks) > 1:
            for _, index in nsmallest(self.config.number(len(ranks)), zip(ranks, count(), strict=False)):
                sides[index] = True
        return sides
