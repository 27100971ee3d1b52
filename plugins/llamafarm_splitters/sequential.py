"""`sequential`: the last rows are held out, for data that is ordered in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.share import CountConfig


class SequentialConfig(CountConfig):
    """Options of the `sequential` splitter."""


class Sequential(DataSplitter[SequentialConfig]):
    """Holds out exactly the share of distinct rows, rounded half up, from the end; their order is kept."""

    name = "sequential"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Count the rows and hold out the last ones.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        total = sum(1 for _ in rows)
        if total < 2:
            return [False] * total
        held_out = self.config.number(total)
        return [False] * (total - held_out) + [True] * held_out
