"""`random`: a seeded choice of an exact number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.ranks import numbers, ranks
from llamafarm_splitters.share import CountConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RandomConfig(CountConfig):
    """Options of the `random` splitter."""

    seed: int = Field(42, strict=True, ge=0, description="Another seed, another choice.")


class Random(DataSplitter[RandomConfig]):
    """Holds out exactly the share of distinct rows, rounded half up, at least one row on each side.

    The same seed chooses the same rows, in whatever order they stand.
    """

    name = "random"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Choose by digest.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        sides: list[bool] = self.held_out_by_digest(numbers(rows)).tolist()
        return sides

    def held_out_by_digest(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Rank the digests by the seed and hold out the first ones.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        import numpy as np

        sides = np.zeros(len(digests), np.bool_)
        if len(sides) > 1:
            count = self.config.number(len(sides))
            sides[np.argpartition(ranks(digests, self.config.seed), count - 1)[:count]] = True
        return sides
